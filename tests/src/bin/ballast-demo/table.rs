//! Trying the paths with real sockets, and the table of what came of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

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
const COLUMNS: usize = 5;
/// Longest line of backends or of sources, so that the table is no wider than 120 columns.
const LIST: usize = 20;

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

/// The rows as people read them, below the name of their Service.
pub(crate) fn show(rows: &[Row<'_>], targets: &[Target]) -> String {
    let mut table = vec![Line::Cells(["PATH", "ADDRESS", "RESULT", "BACKENDS", "SOURCE SEEN"].map(str::to_owned))];
    let mut last = None;
    for row in rows {
        let Path { service, name, protocol, to, expect, .. } = row.path;
        if last.replace(service) != Some(service) {
            table.push(Line::Title(service.clone()));
        }
        let result = match (&row.result, expect) {
            (Err(_), _) => "FAILED",
            (Ok(()), Expect::Answers(_)) => "ok",
            (Ok(()), Expect::Refused) => "ok, refused",
            (Ok(()), Expect::Silent) => "ok, silent",
        };
        let sources: BTreeSet<_> = row.reached.values().flatten().collect();
        let lists = [broken(row.reached.keys()), broken(sources)];
        for line in 0..lists.iter().map(Vec::len).max().unwrap_or(0).max(1) {
            let first = |text: String| if line == 0 { text } else { String::new() };
            let [backends, sources] = lists.each_ref().map(|list| list.get(line).cloned().unwrap_or_default());
            let address = format!("{to}/{protocol}");
            table.push(Line::Cells([first(name.clone()), first(address), first(result.to_owned()), backends, sources]));
        }
        table.extend(row.result.as_ref().err().map(|error| Line::Remark(format!("  {error}"))));
    }
    for target in targets.iter().filter(|target| !target.left_out.is_empty()) {
        table.push(Line::Title(target.name.clone()));
        table.extend(target.left_out.iter().map(|why| Line::Remark(format!("not tried: {why}"))));
    }
    lay_out(&table)
}

/// A line of the table.
enum Line {
    Title(String),
    Cells([String; COLUMNS]),
    Remark(String),
}

/// Items with commas between them, in lines that are not too long.
fn broken<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items.into_iter().map(|item| item.to_string()) {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + item.len() <= LIST => {
                line.push(',');
                line.push_str(&item);
            }
            Some(line) => {
                line.push(',');
                lines.push(item);
            }
            None => lines.push(item),
        }
    }
    lines
}

fn lay_out(table: &[Line]) -> String {
    let mut widths = [0; COLUMNS];
    for line in table {
        let Line::Cells(cells) = line else { continue };
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = cell.len().max(*width);
        }
    }
    let words = |line: &Line| match line {
        Line::Title(name) => name.clone(),
        Line::Remark(text) => format!("  {text}"),
        Line::Cells(cells) => {
            let padded = cells.iter().zip(widths).map(|(cell, width)| format!("  {cell:<width$}"));
            padded.collect::<String>().trim_end().to_owned()
        }
    };
    table.iter().map(words).collect::<Vec<_>>().join("\n")
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

    #[test]
    fn lists_are_broken_at_their_commas() {
        assert_eq!(broken(["python-1", "python-2"]), ["python-1,python-2"]);
        let long = ["fd00:10:244:2::11", "fd00:192:168:2::2", "::1"];
        assert_eq!(broken(long), ["fd00:10:244:2::11,", "fd00:192:168:2::2,", "::1"]);
        assert!(broken([""; 0]).is_empty());
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let cells = |cells: [&str; COLUMNS]| Line::Cells(cells.map(str::to_owned));
        let table = [
            cells(["PATH", "ADDRESS", "RESULT", "BACKENDS", "SOURCE SEEN"]),
            Line::Title("a-service-of-a-long-name".to_owned()),
            cells(["pod to ClusterIP", "10.96.0.1:80/TCP", "ok", "a,", ""]),
            cells(["", "", "", "b", ""]),
            Line::Remark("not tried: there is none".to_owned()),
        ];
        let expected = "  PATH              ADDRESS           RESULT  BACKENDS  SOURCE SEEN\n\
                        a-service-of-a-long-name\n\
                        \x20 pod to ClusterIP  10.96.0.1:80/TCP  ok      a,\n\
                        \x20                                             b\n\
                        \x20 not tried: there is none";
        assert_eq!(lay_out(&table), expected);
    }
}
