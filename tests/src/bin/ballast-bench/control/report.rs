//! The table.

use std::{collections::BTreeMap, time::Duration};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::json;

use super::cluster::Size;

/// What was measured of one agent.
pub(super) struct Figures {
    /// From its start to the first datagram that was answered by the right backend.
    pub(super) first_packet: Duration,
    /// From its start to `/healthz` of 200.
    pub(super) healthy: Duration,
    /// The same of one that finds a snapshot and nothing else, if it was tried.
    pub(super) booted: Option<Duration>,
    /// The first sync, which begins when the lists are there.
    pub(super) first_sync: Duration,
    /// From the API write to the first datagram that was answered rightly; sorted.
    pub(super) times: Vec<Duration>,
    /// CPU time for each change.
    pub(super) cpu_per_change: Duration,
    /// CPU time in a second without changes, as a share of a core.
    pub(super) idle_cpu: f64,
    /// Bytes.
    pub(super) anonymous: u64,
    /// Bytes.
    pub(super) resident: u64,
    /// Bytes.
    pub(super) maps: u64,
}

impl Figures {
    /// The time that so many of a hundred changes did not take longer than.
    fn percentile(&self, percent: usize) -> Duration {
        let index = (percent * self.times.len()).div_ceil(100);
        self.times.get(index.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// A row: what it is, and what each agent has.
type Row = (&'static str, fn(&Figures) -> String);

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20)
}

const ROWS: [Row; 11] = [
    ("start to /healthz 200", |it| seconds(it.healthy)),
    ("start to the first right packet", |it| seconds(it.first_packet)),
    ("the same from a snapshot, no API server", |it| it.booted.map_or_else(|| "none".to_owned(), seconds)),
    ("first sync (lists are there)", |it| {
        if it.first_sync.is_zero() { "not told".to_owned() } else { seconds(it.first_sync) }
    }),
    ("one endpoint, API write to right packet: median", |it| ms(it.percentile(50))),
    ("one endpoint, API write to right packet: p99", |it| ms(it.percentile(99))),
    ("CPU time for one change", |it| ms(it.cpu_per_change)),
    ("CPU when idle", |it| format!("{:.2} %", it.idle_cpu * 100.0)),
    ("anonymous memory", |it| mib(it.anonymous)),
    ("resident memory", |it| mib(it.resident)),
    ("BPF maps", |it| if it.maps == 0 { "none".to_owned() } else { mib(it.maps) }),
];

pub(super) fn print(size: &Size, all: &BTreeMap<&str, Figures>, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let of = |it: &Figures| {
            json!({
                "startToHealthySeconds": it.healthy.as_secs_f64(),
                "startToFirstPacketSeconds": it.first_packet.as_secs_f64(),
                "snapshotToFirstPacketSeconds": it.booted.map(|time| time.as_secs_f64()),
                "firstSyncSeconds": it.first_sync.as_secs_f64(),
                "changeSeconds": it.times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
                "cpuPerChangeSeconds": it.cpu_per_change.as_secs_f64(), "idleCpu": it.idle_cpu,
                "anonymousBytes": it.anonymous, "residentBytes": it.resident, "mapBytes": it.maps,
            })
        };
        let subjects: BTreeMap<_, _> = all.iter().map(|(name, figures)| (*name, of(figures))).collect();
        let document = json!({"services": size.services, "endpoints": size.endpoints, "subjects": subjects});
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let mut table = Table::new();
    let header = std::iter::once("").chain(all.keys().copied());
    table.load_style(NOTHING).set_header(header);
    for (what, show) in ROWS {
        table.add_row(std::iter::once(what.to_owned()).chain(all.values().map(show)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{size}, of a real API server:");
    println!("{table}");
    Ok(())
}
