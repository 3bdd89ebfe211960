//! A file's text into documents: split, parsed, lists expanded.
//!
//! A line that starts with `---` ends a document whatever context it stands in (YAML 1.2.2, 9.1.2), so a file is split
//! before it is parsed and a broken document does not take its neighbours with it.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

use saphyr::{LoadableYamlNode, MarkedYaml, YamlData};
use serde_json::Value;

/// One object as it stands in a file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Name of the file, for people.
    pub(crate) file: Arc<str>,
    /// The YAML document the object stands in.
    chunk: Arc<Chunk>,
    /// `items[3].` for an object of a List.
    prefix: String,
    /// The object.
    pub(crate) value: Arc<Value>,
}

/// A YAML document of a file.
#[derive(Debug)]
struct Chunk {
    /// The whole file's text; a document's own copy would double it.
    file: Arc<str>,
    range: Range<usize>,
    /// Line of the file on which the document starts, from 0.
    start: usize,
    /// Lines by path, made at the first error: a List of thousands of objects is parsed once more, not once per error.
    lines: OnceLock<HashMap<String, usize>>,
}

impl Chunk {
    fn text(&self) -> &str {
        self.file.get(self.range.clone()).unwrap_or_default()
    }
}

impl Document {
    /// The line (from 1) of a field such as `spec.ports[0].port`, or of the deepest part of it that exists.
    pub(crate) fn line(&self, field: &str) -> Option<usize> {
        let lines = self.chunk.lines.get_or_init(|| lines(self.chunk.text()));
        let path = format!("{}{field}", self.prefix);
        let mut path = path.trim_end_matches('.');
        loop {
            if let Some(line) = lines.get(path) {
                return Some(self.chunk.start + line);
            }
            path = path.get(..path.rfind(['.', '['])?)?;
        }
    }
}

/// The line of every node by its path; of none where the text cannot be read a second time (JSON with tabs).
fn lines(text: &str) -> HashMap<String, usize> {
    let mut lines = HashMap::new();
    if let Some(root) = MarkedYaml::load_from_str(text).unwrap_or_default().first() {
        note(root, "", &mut lines);
        // For what has no path of its own.
        let first = lines.values().min().copied();
        lines.extend(first.map(|line| (String::new(), line)));
    }
    lines
}

fn note(node: &MarkedYaml<'_>, path: &str, lines: &mut HashMap<String, usize>) {
    match &node.data {
        YamlData::Mapping(map) => {
            for (name, value) in map {
                let Some(key) = name.data.as_str() else { continue };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                note(value, &path, lines);
                lines.insert(path, name.span.start.line());
            }
        }
        YamlData::Sequence(list) => {
            for (index, value) in list.iter().enumerate() {
                let path = format!("{path}[{index}]");
                note(value, &path, lines);
                lines.insert(path, value.span.start.line());
            }
        }
        _ => {}
    }
}

/// A document that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) line: Option<usize>,
    pub(crate) reason: String,
}

/// Every object of a file and every document that is none.
pub(crate) fn parse(file: &Arc<str>, text: &Arc<str>) -> (Vec<Document>, Vec<Unreadable>) {
    let (mut documents, mut broken) = (Vec::new(), Vec::new());
    for (start, range) in split(text) {
        let chunk = Chunk { file: text.clone(), range, start, lines: OnceLock::new() };
        match parse_one(chunk.text()) {
            Ok(Value::Null) => {}
            Ok(value) => {
                let chunk = Arc::new(chunk);
                expand(file, &chunk, String::new(), value, &mut documents, &mut broken);
            }
            Err(error) => broken.push(Unreadable { line: error.line.map(|line| start + line), ..error }),
        }
    }
    (documents, broken)
}

fn parse_one(text: &str) -> Result<Value, Unreadable> {
    // Large Lists straight from a cluster are normal input; depth, aliases and their expansion stay bounded.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 40_000_000, max_nodes: 20_000_000, max_aliases: 1_000 },
        // YAML 1.2: a port may be named `y` and a label may say `yes`.
        strict_booleans: true,
        with_snippet: false,
    };
    let parsed = serde_saphyr::from_str_with_options::<Value>(text, options);
    let error = match parsed {
        Ok(mut value) => {
            drop_nulls(&mut value);
            return Ok(value);
        }
        Err(error) => error,
    };
    // JSON may be indented with tabs, which YAML forbids.
    if text.contains('\t')
        && text.trim_start().starts_with('{')
        && let Ok(mut value) = serde_json::from_str(text)
    {
        drop_nulls(&mut value);
        return Ok(value);
    }
    let line = error.location().and_then(|location| usize::try_from(location.line()).ok()).filter(|line| *line > 0);
    Err(Unreadable { line, reason: error.without_snippet().to_string() })
}

/// The API's decoder takes `null` for "left out" everywhere.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Documents with the line (from 0) each starts on; ones of blanks, comments and directives alone are left out.
fn split(text: &str) -> Vec<(usize, Range<usize>)> {
    let mark = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut chunks = Vec::new();
    let (mut begin, mut begin_line, mut offset) = (mark, 0, mark);
    let body = text.get(mark..).unwrap_or_default();
    for (number, line) in body.split_inclusive('\n').enumerate() {
        let marker = line.starts_with("---") || line.starts_with("...");
        if marker && line.get(3..).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            chunks.push((begin_line, begin..offset));
            // What stands behind `---` on its line belongs to the document; behind `...` only a comment may stand.
            (begin, begin_line) =
                if line.starts_with("---") { (offset + 3, number) } else { (offset + line.len(), number + 1) };
        }
        offset += line.len();
    }
    chunks.push((begin_line, begin.min(text.len())..text.len()));
    chunks.retain(|(_, range)| {
        let chunk = text.get(range.clone()).unwrap_or_default();
        chunk.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with('%'))
    });
    chunks
}

fn expand(
    file: &Arc<str>,
    chunk: &Arc<Chunk>,
    prefix: String,
    mut value: Value,
    documents: &mut Vec<Document>,
    broken: &mut Vec<Unreadable>,
) {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    // A List of Lists is legal but pointless; one level inside another is more than kubectl ever writes.
    let depth = prefix.matches("items").count();
    let Some(item_kind) = kind.strip_suffix("List").filter(|_| depth < 2) else {
        if !value.is_object() {
            broken.push(Unreadable { line: Some(chunk.start + 1), reason: "a document must be a mapping".into() });
            return;
        }
        documents.push(Document { file: file.clone(), chunk: chunk.clone(), prefix, value: value.into() });
        return;
    };
    let version = value.get("apiVersion").cloned();
    let items = match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        None => Vec::new(),
        Some(_) => {
            broken.push(Unreadable { line: Some(chunk.start + 1), reason: format!("{kind}: items must be a list") });
            return;
        }
    };
    for (index, mut item) in items.into_iter().enumerate() {
        // The items of a typed list (`ServiceList`) carry neither kind nor apiVersion.
        if let Some(map) = item.as_object_mut()
            && !item_kind.is_empty()
        {
            map.entry("kind").or_insert_with(|| item_kind.into());
            if let Some(version) = &version {
                map.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        expand(file, chunk, format!("{prefix}items[{index}]."), item, documents, broken);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn documents(text: &str) -> (Vec<Document>, Vec<Unreadable>) {
        parse(&"a.yaml".into(), &text.into())
    }

    #[test]
    fn a_broken_document_names_its_line_and_spares_its_neighbours() {
        let (good, broken) = documents("kind: A\n---\nkind: [\n---\nkind: B\n");
        assert_eq!(good.len(), 2);
        assert_eq!(broken.len(), 1);
        assert!(broken[0].line.is_some_and(|line| (3..=4).contains(&line)), "{broken:?}");
    }

    #[test]
    fn duplicate_keys_are_an_error() {
        let (good, broken) = documents("kind: A\nmetadata: {name: x, name: y}\n");
        assert!(good.is_empty());
        assert!(broken[0].reason.contains("duplicate"), "{broken:?}");
    }

    #[test]
    fn lists_and_json_and_nulls() {
        let (good, broken) = documents(
            "{\"kind\":\"List\",\"items\":[{\"kind\":\"A\",\"x\":null},{\"kind\":\"B\"}]}\n---\nkind: ServiceList\napiVersion: v1\nitems: [{metadata: {name: a}}]\n",
        );
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(good.len(), 3);
        assert!(good[0].value.get("x").is_none());
        assert_eq!(good[2].value["kind"], "Service");
        let (tabs, _) = documents("{\n\t\"kind\": \"A\"\n}\n");
        assert_eq!(tabs.len(), 1);
    }

    #[test]
    fn a_field_is_found_by_its_path() {
        let (good, _) = documents(
            "kind: A\n---\nkind: List\nitems:\n- kind: B\n  spec:\n    ports:\n    - port: 1\n    - port: 2\n",
        );
        assert_eq!(good[1].line("spec.ports[1].port"), Some(9));
        assert_eq!(good[1].line("spec.absent"), Some(6));
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in "[-a-z:{}\\[\\]&*!|>%@\"' \n\t.#0-9]{0,200}") {
            let (good, _) = documents(&text);
            for document in good {
                document.line("spec.ports[0]");
            }
        }
    }
}
