//! Trying the paths with real sockets, and the table of what came of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use comfy_table::{Table, presets::NOTHING};
use lb_tests::client::{Answer, Call, Transport};
use lb_userspace::model::Protocol;

use crate::{
    paths::{Expect, Path},
    targets::Target,
};

/// How long a single try may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long nothing must come where nothing may.
const SILENCE: Duration = Duration::from_millis(300);
/// "At once", in milliseconds.
const AT_ONCE: f64 = 100.0;
/// Connections at a time, and how often: a backend of ten is missed by all of them once in ten million runs.
const BATCH: u32 = 8;
const BATCHES: usize = 20;

/// A tried path.
pub(crate) struct Row<'a> {
    path: &'a Path<'a>,
    /// What happened, if it is what must.
    pub(crate) result: Result<(), String>,
    reached: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// Tries a path until all is seen that must be, or something that must not.
pub(crate) fn attempt<'a>(path: &'a Path<'a>) -> anyhow::Result<Row<'a>> {
    let mut row = Row { path, result: Ok(()), reached: BTreeMap::new() };
    let transport = if path.protocol == Protocol::Udp { Transport::Udp } else { Transport::Tcp };
    let call = Call::new(transport, path.to).timeout(PATIENCE);
    match &path.expect {
        Expect::Answers(wanted) => {
            for batch in 0..BATCHES {
                // The first alone: what does not work at all shall not take eight times its patience.
                let answers = call.clone().count(if batch == 0 { 1 } else { BATCH }).run(path.from)?;
                row.result = answers.iter().try_for_each(|answer| judge(answer, wanted, &mut row.reached));
                if row.result.is_err() || row.reached.len() == wanted.len() {
                    return Ok(row);
                }
            }
            let missing: Vec<_> = wanted.keys().filter(|name| !row.reached.contains_key(*name)).cloned().collect();
            row.result = Err(format!("never reached: {}", missing.join(",")));
        }
        Expect::Refused => {
            // The best of three: others use this machine too.
            for _ in 0..3 {
                let answer = call.run_one(path.from)?;
                let refused = answer.error.as_deref() == Some("ECONNREFUSED");
                row.result = match refused {
                    true if answer.elapsed_ms < AT_ONCE => Ok(()),
                    true => Err(format!("refused only after {:.0} ms", answer.elapsed_ms)),
                    false => Err(unexpected(&answer, "a refusal")),
                };
                if row.result.is_ok() || !refused {
                    return Ok(row);
                }
            }
        }
        Expect::Silent => {
            let answer = call.timeout(SILENCE).run_one(path.from)?;
            let silent = answer.error.as_deref() == Some("ETIMEDOUT");
            row.result = if silent { Ok(()) } else { Err(unexpected(&answer, "silence")) };
        }
    }
    Ok(row)
}

fn judge(
    answer: &Answer,
    wanted: &BTreeMap<String, IpAddr>,
    reached: &mut BTreeMap<String, BTreeSet<IpAddr>>,
) -> Result<(), String> {
    let (backend, source) = answer.reached().map_err(|error| error.to_string())?;
    reached.entry(backend.to_owned()).or_default().insert(source);
    match wanted.get(backend) {
        None => Err(format!("{backend} answered, which must not")),
        Some(expected) if *expected != source => Err(format!("{backend} saw {source} instead of {expected}")),
        Some(_) => Ok(()),
    }
}

fn unexpected(answer: &Answer, instead_of: &str) -> String {
    match (&answer.error, &answer.backend) {
        (Some(error), _) => format!("{error} instead of {instead_of}"),
        (None, backend) => format!("{} answered instead of {instead_of}", backend.as_deref().unwrap_or("somebody")),
    }
}

/// The rows as people read them.
pub(crate) fn show(rows: &[Row<'_>], targets: &[Target]) -> String {
    let mut table = Table::new();
    let header = ["SERVICE", "PATH", "PROTOCOL", "ADDRESS", "RESULT", "BACKENDS", "SOURCE SEEN"];
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        let Path { service, name, protocol, to, expect, .. } = row.path;
        let result = match (&row.result, expect) {
            (Err(error), _) => format!("FAILED: {error}"),
            (Ok(()), Expect::Answers(_)) => "ok".to_owned(),
            (Ok(()), Expect::Refused) => "refused (as it should)".to_owned(),
            (Ok(()), Expect::Silent) => "silent (as it should)".to_owned(),
        };
        let backends = row.reached.keys().cloned().collect::<Vec<_>>().join(",");
        let sources: BTreeSet<_> = row.reached.values().flatten().collect();
        let sources = sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let [protocol, to] = [protocol.to_string(), to.to_string()];
        table.add_row([service.clone(), name.clone(), protocol, to, result, backends, sources]);
    }
    for (target, why) in targets.iter().flat_map(|target| target.left_out.iter().map(move |why| (target, why))) {
        let empty = String::new;
        table.add_row([target.name.clone(), empty(), empty(), empty(), format!("not tried: {why}"), empty(), empty()]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(backend: &str, source: [u8; 4]) -> Answer {
        Answer {
            error: None,
            local: None,
            peer: None,
            backend: Some(backend.to_owned()),
            source: Some((source, 1000).into()),
            elapsed_ms: 1.0,
        }
    }

    #[test]
    fn only_the_right_backend_with_the_right_source_will_do() {
        let wanted = BTreeMap::from([("a".to_owned(), IpAddr::from([10, 0, 0, 1]))]);
        let judge = |answer: &Answer| judge(answer, &wanted, &mut BTreeMap::new());
        assert_eq!(judge(&answer("a", [10, 0, 0, 1])), Ok(()));
        assert_eq!(judge(&answer("a", [10, 0, 0, 2])), Err("a saw 10.0.0.2 instead of 10.0.0.1".to_owned()));
        assert_eq!(judge(&answer("b", [10, 0, 0, 1])), Err("b answered, which must not".to_owned()));
        let silent = Answer { error: Some("ETIMEDOUT".to_owned()), backend: None, ..answer("a", [10, 0, 0, 1]) };
        assert!(judge(&silent).is_err_and(|error| error.contains("ETIMEDOUT")));
    }
}
