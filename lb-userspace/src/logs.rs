//! The agent's log: lines as klog writes them, or JSON as Kubernetes' components do, no more from one place in the code
//! than it takes to see what goes on.
//!
//! ```text
//! W1126 12:00:00.123456    4711 verify.rs:120] maps: entries were not as programmed
//! {"ts":1795694400123.456,"caller":"agent/verify.rs:120","level":"warn","msg":"...","v":0}
//! ```
//! Times are UTC: nodes rarely are anything else, and a container has no time zone of its node.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize as _;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Lines that one place may write at once, and how soon it may write one more.
const BURST: u32 = 20;
const EVERY: Duration = Duration::from_secs(5);

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// As klog writes them.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How lines look.
    pub format: Format,
    /// As klog counts: 0 what needs attention and what happens seldom, 2 what happens with each change, 6 everything.
    pub verbosity: u32,
}

static LIMITS: Mutex<Option<Limits>> = Mutex::new(None);

/// Logs to standard error from now on. `RUST_LOG` says otherwise where it is set.
pub fn start(options: Options) {
    let level = match options.verbosity {
        0 | 1 => "info",
        2..=5 => "debug",
        6.. => "trace",
    };
    // Libraries have their own idea of what is worth a line.
    let filter = EnvFilter::builder()
        .parse_lossy(std::env::var("RUST_LOG").unwrap_or_else(|_| format!("warn,lb_userspace={level}")));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = Lines { format: options.format, pid: std::process::id() };
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour).event_format(lines);
    if subscriber.try_init().is_err() {
        eprintln!("warning: something else logs already");
    }
}

/// Tells of lines that were left out and that no later line of their place told of.
pub fn tell_suppressed() {
    let all = with_limits(|limits| limits.take_suppressed(Instant::now()));
    for (place, count) in all {
        tracing::info!("{count} more lines of {place} were suppressed");
    }
}

fn with_limits<T>(body: impl FnOnce(&mut Limits) -> T) -> T {
    body(LIMITS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// How much each place in the code has written.
#[derive(Debug, Default)]
struct Limits(HashMap<Place, Limit>);

/// File and line.
type Place = (&'static str, u32);

#[derive(Debug)]
struct Limit {
    left: u32,
    since: Instant,
    suppressed: u64,
}

impl Limits {
    /// Whether a line may be written now; then with the number of those that were not.
    fn spend(&mut self, place: Place, now: Instant) -> Option<u64> {
        let new = Limit { left: BURST, since: now, suppressed: 0 };
        self.0.entry(place).or_insert(new).spend(now)
    }

    fn take_suppressed(&mut self, now: Instant) -> Vec<(String, u64)> {
        let quiet = |limit: &Limit| limit.suppressed > 0 && now.saturating_duration_since(limit.since) >= EVERY;
        let all = self.0.iter_mut().filter(|(_, limit)| quiet(limit));
        all.map(|(place, limit)| (words(*place), std::mem::take(&mut limit.suppressed))).collect()
    }
}

impl Limit {
    fn spend(&mut self, now: Instant) -> Option<u64> {
        let more = now.saturating_duration_since(self.since).as_secs() / EVERY.as_secs();
        if more > 0 {
            self.left = self.left.saturating_add(u32::try_from(more).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
    }
}

fn place(metadata: &'static Metadata<'static>) -> Place {
    (metadata.file().unwrap_or("unknown"), metadata.line().unwrap_or(0))
}

/// For people: the file by its last two parts.
fn words((file, line): Place) -> String {
    let mut parts = file.rsplit('/');
    let (name, folder) = (parts.next().unwrap_or_default(), parts.next());
    match folder.filter(|folder| *folder != "src") {
        Some(folder) => format!("{folder}/{name}:{line}"),
        None => format!("{name}:{line}"),
    }
}

/// Writes events as lines.
struct Lines {
    format: Format,
    pid: u32,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let place = place(metadata);
        let Some(suppressed) = with_limits(|limits| limits.spend(place, Instant::now())) else { return Ok(()) };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if suppressed > 0 {
            write!(fields.message, " ({suppressed} more suppressed)")?;
        }
        let now = jiff::Timestamp::now();
        let line = match self.format {
            Format::Text => text(now, self.pid, *metadata.level(), &words(place), &fields),
            Format::Json => json(now, *metadata.level(), &words(place), &fields),
        };
        let colour = match *metadata.level() {
            Level::ERROR => "\u{1b}[31m",
            Level::WARN => "\u{1b}[33m",
            _ => "",
        };
        if writer.has_ansi_escapes() && !colour.is_empty() {
            writeln!(writer, "{colour}{line}\u{1b}[0m")
        } else {
            writeln!(writer, "{line}")
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.others.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.others.push((field.name(), value.to_owned()));
        }
    }
}

fn text(now: jiff::Timestamp, pid: u32, level: Level, caller: &str, fields: &Fields) -> String {
    let letter = match level {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        _ => 'I',
    };
    let mut line = format!("{letter}{} {pid:>7} {caller}] ", now.strftime("%m%d %H:%M:%S%.6f"));
    // A line stays a line, whatever an object or a server says.
    line.extend(fields.message.chars().flat_map(|letter| {
        let control = letter.is_control();
        let escaped = control.then(|| letter.escape_default());
        escaped.into_iter().flatten().chain((!control).then_some(letter))
    }));
    for (name, value) in &fields.others {
        line.push_str(&format!(" {name}={value:?}"));
    }
    line
}

fn json(now: jiff::Timestamp, level: Level, caller: &str, fields: &Fields) -> String {
    let mut object = serde_json::Map::new();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 with three digits fit for a long time")]
    let milliseconds = now.as_microsecond() as f64 / 1000.0;
    object.insert("ts".to_owned(), milliseconds.serialize(serde_json::value::Serializer).unwrap_or_default());
    object.insert("caller".to_owned(), caller.into());
    object.insert("level".to_owned(), level.as_str().to_ascii_lowercase().into());
    object.insert("msg".to_owned(), fields.message.clone().into());
    // As klog's JSON: errors have no verbosity.
    if level != Level::ERROR {
        let verbosity = match level {
            Level::DEBUG => 2,
            Level::TRACE => 6,
            _ => 0,
        };
        object.insert("v".to_owned(), verbosity.into());
    }
    for (name, value) in &fields.others {
        object.insert((*name).to_owned(), value.clone().into());
    }
    serde_json::Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &str) -> Fields {
        Fields { message: message.to_owned(), others: vec![("map", "LB_RINGS".to_owned())] }
    }

    fn at() -> jiff::Timestamp {
        "2026-11-26T12:00:00.1234567Z".parse().expect("a time")
    }

    #[test]
    fn text_is_as_klog_writes_it_and_one_line() {
        let line = text(at(), 4711, Level::WARN, "agent/verify.rs:7", &fields("one\ntwo \u{1b}[31m"));
        assert_eq!(line, "W1126 12:00:00.123456    4711 agent/verify.rs:7] one\\ntwo \\u{1b}[31m map=\"LB_RINGS\"");
        assert!(text(at(), 1, Level::DEBUG, "a:1", &fields("x")).starts_with("I1126 "));
        assert!(text(at(), 1, Level::ERROR, "a:1", &fields("x")).starts_with("E1126 "));
    }

    #[test]
    fn json_is_an_object_a_line() {
        let line = json(at(), Level::INFO, "agent/mod.rs:7", &fields("one\ntwo"));
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&value["msg"], &value["map"], &value["v"]), (&"one\ntwo".into(), &"LB_RINGS".into(), &0.into()));
        assert_eq!(value["ts"].as_f64(), Some(1_795_694_400_123.456));
        let error = json(at(), Level::ERROR, "a:1", &fields("x"));
        assert!(!error.contains("\"v\""), "{error}");
    }

    #[test]
    fn a_place_writes_a_burst_then_seldom_and_tells_what_it_left_out() {
        let start = Instant::now();
        let mut limit = Limit { left: BURST, since: start, suppressed: 0 };
        let mut written = Vec::new();
        // A line each 10 ms for a minute.
        for tick in 0..6_000_u32 {
            if let Some(suppressed) = limit.spend(start + Duration::from_millis(10) * tick) {
                written.push(suppressed);
            }
        }
        assert_eq!(written.len(), BURST as usize + 11, "{written:?}");
        assert_eq!(written[..BURST as usize], [0; BURST as usize]);
        let told: u64 = written.iter().sum();
        assert_eq!(told + limit.suppressed + written.len() as u64, 6_000, "each line was written or is counted");
        // The rest is told when nothing follows.
        let mut limits = Limits::default();
        limits.0.insert(("lb-userspace/src/a.rs", 1), limit);
        assert!(limits.take_suppressed(start + Duration::from_secs(59)).is_empty(), "it may still be told by a line");
        assert_eq!(
            limits.take_suppressed(start + Duration::from_secs(70)),
            [("a.rs:1".to_owned(), 6_000 - told - written.len() as u64)]
        );
        assert_eq!(words(("lb-userspace/src/agent/web.rs", 7)), "agent/web.rs:7");
        assert!(limits.take_suppressed(start + Duration::from_secs(80)).is_empty(), "once");
    }
}
