//! The tables.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::{Value, json};

use super::{load::Load, objects::Size, servers::Kind};
use crate::control::process::Usage;

/// What was measured of one server.
pub(super) struct Figures {
    pub(super) kind: Kind,
    /// From its start to its first right answer, of each start.
    pub(super) starts: Vec<Duration>,
    /// After its start, and after the load.
    pub(super) usage: [Usage; 2],
    /// With as many questions as it answers, round by round.
    pub(super) most: Vec<Load>,
    /// With the same number of questions a second as the others.
    pub(super) equal: Vec<Load>,
}

/// The middle one.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Figures {
    fn start(&self) -> f64 {
        median(self.starts.iter().map(Duration::as_secs_f64))
    }

    fn rows(&self) -> [String; 9] {
        let of = |loads: &[Load], what: &dyn Fn(&Load) -> f64| median(loads.iter().map(what));
        let us = |loads: &[Load], share| format!("{:.0} us", of(loads, &|load| load.quantile(share)));
        let lost: usize = self.most.iter().chain(&self.equal).map(|load| load.lost).sum();
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let [rest, loaded] = self.usage;
        [
            format!("{:.0}", of(&self.most, &|load| load.rate)),
            us(&self.most, 0.5),
            us(&self.most, 0.99),
            us(&self.equal, 0.5),
            us(&self.equal, 0.99),
            lost.to_string(),
            format!("{:.2} s", self.start()),
            format!("{} / {}", mib(rest.anonymous), mib(rest.resident)),
            format!("{} / {}", mib(loaded.anonymous), mib(loaded.resident)),
        ]
    }

    fn json(&self) -> Value {
        let loads = |loads: &[Load]| -> Vec<Value> {
            let one = |load: &Load| json!({"rate": load.rate, "lost": load.lost, "p50": load.quantile(0.5), "p99": load.quantile(0.99)});
            loads.iter().map(one).collect()
        };
        let usage = |usage: &Usage| json!({"anonymousBytes": usage.anonymous, "residentBytes": usage.resident});
        json!({
            "server": self.kind.name(), "startSeconds": self.starts.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
            "atRest": usage(&self.usage[0]), "afterLoad": usage(&self.usage[1]),
            "most": loads(&self.most), "equal": loads(&self.equal),
        })
    }
}

/// Time from a change to the first answer that has it.
pub(super) struct Followed {
    pub(super) size: Size,
    /// Sorted.
    pub(super) times: Vec<Duration>,
}

impl Followed {
    /// In milliseconds.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let index = (share * self.times.len() as f64).ceil() as usize;
        self.times.get(index.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

pub(super) fn print(
    size: Size,
    rate: f64,
    all: &[Figures],
    followed: &[Followed],
    as_json: bool,
) -> anyhow::Result<()> {
    if as_json {
        let follow = |it: &Followed| json!({"services": it.size.services, "endpoints": it.size.endpoints, "p50Ms": it.quantile(0.5), "p99Ms": it.quantile(0.99)});
        let document = json!({
            "services": size.services, "endpoints": size.endpoints, "equalRate": rate,
            "servers": all.iter().map(Figures::json).collect::<Vec<_>>(),
            "followed": followed.iter().map(follow).collect::<Vec<_>>(),
        });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let what = [
        "answers a second, at most".to_owned(),
        "  p50 of these".to_owned(),
        "  p99 of these".to_owned(),
        format!("p50 at {rate:.0} questions a second"),
        "  p99 of these".to_owned(),
        "questions without an answer".to_owned(),
        "start to the first right answer".to_owned(),
        "memory then, anonymous / resident".to_owned(),
        "memory after the load".to_owned(),
    ];
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(std::iter::once("").chain(all.iter().map(|figures| figures.kind.name())));
    let rows: Vec<_> = all.iter().map(Figures::rows).collect();
    for (index, what) in what.into_iter().enumerate() {
        let cell = |row: &[String; 9]| row.get(index).cloned().unwrap_or_default();
        table.add_row(std::iter::once(what).chain(rows.iter().map(cell)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!(
        "{} Services with {} endpoints, each server on one core; medians of the rounds:",
        size.services, size.endpoints
    );
    println!("{table}");
    for it in followed {
        let Size { services, endpoints } = it.size;
        let (count, half, most) = (it.times.len(), it.quantile(0.5), it.quantile(0.99));
        println!(
            "a headless answer follows a change of readiness ({count} changes, {services} Services, {endpoints} endpoints): p50 {half:.1} ms, p99 {most:.1} ms"
        );
    }
    Ok(())
}
