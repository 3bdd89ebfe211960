//! Just enough of Rust's grammar: code without comments and literals, its words, and the paths it names.

/// `text` with comments, strings and characters blanked; lines keep their numbers.
pub(super) fn blank(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        let end = literal_end(&characters, at);
        if end == at {
            out.push(character);
            at += 1;
        } else {
            let skipped = characters.get(at..end).unwrap_or_default();
            out.extend(skipped.iter().map(|&skipped| if skipped == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` itself when none starts there.
fn literal_end(text: &[char], at: usize) -> usize {
    let peek = |ahead: usize| text.get(at + ahead).copied();
    let after_word = at > 0 && text.get(at - 1).is_some_and(|&before| is_word(before));
    match peek(0) {
        Some('/') if peek(1) == Some('/') => find(text, at, |rest| rest.first() == Some(&'\n')),
        Some('/') if peek(1) == Some('*') => block_comment_end(text, at),
        Some('"') => string_end(text, at + 1),
        Some('r') if !after_word && matches!(peek(1), Some('"' | '#')) => raw_string_end(text, at),
        Some('b') if !after_word && peek(1) == Some('r') => {
            let end = raw_string_end(text, at + 1);
            if end == at + 1 { at } else { end }
        }
        Some('\'') if peek(1) == Some('\\') => find(text, at + 3, |rest| rest.first() == Some(&'\'')) + 1,
        // A lifetime has no closing quote right behind its first character.
        Some('\'') if peek(2) == Some('\'') => at + 3,
        _ => at,
    }
    .min(text.len())
}

fn find(text: &[char], from: usize, found: impl Fn(&[char]) -> bool) -> usize {
    (from..text.len()).find(|&at| found(text.get(at..).unwrap_or_default())).unwrap_or(text.len())
}

fn string_end(text: &[char], mut at: usize) -> usize {
    while let Some(&character) = text.get(at) {
        match character {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

fn raw_string_end(text: &[char], at: usize) -> usize {
    let hashes = text.iter().skip(at + 1).take_while(|&&character| character == '#').count();
    if text.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let mut close = vec!['"'];
    close.extend(std::iter::repeat_n('#', hashes));
    find(text, at + 2 + hashes, |rest| rest.starts_with(&close)) + close.len()
}

fn block_comment_end(text: &[char], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(&character) = text.get(at) {
        match (character, text.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth.saturating_sub(1), at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// A word or a single sign, with its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) line: usize,
    pub(super) text: &'a str,
}

impl Token<'_> {
    fn is_word(&self) -> bool {
        self.text.starts_with(is_word)
    }
}

/// The words and signs of blanked code; `::` is one sign.
pub(super) fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|character| !is_word(character)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (text, tail) = rest.split_at(length);
            found.push(Token { line: index + 1, text });
            rest = tail.trim_start();
        }
    }
    found
}

/// Every path that code names, with the groups of `use` written out: `use std::{fs, io::Read}` gives `std::fs` and
/// `std::io::Read`. Single words are paths too.
pub(super) fn paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = path(&tokens, at, "", &mut found);
    }
    found
}

/// Reads the path at `at` behind `prefix` and returns where to go on.
fn path(tokens: &[Token<'_>], mut at: usize, prefix: &str, found: &mut Vec<(usize, String)>) -> usize {
    let Some(first) = tokens.get(at) else { return at };
    if first.text == "::" && prefix.is_empty() {
        return at + 1;
    }
    if !first.is_word() && first.text != "*" {
        return at + 1;
    }
    let line = first.line;
    let mut whole = if prefix.is_empty() { first.text.to_owned() } else { format!("{prefix}::{}", first.text) };
    at += 1;
    while tokens.get(at).is_some_and(|token| token.text == "::") {
        match tokens.get(at + 1) {
            Some(next) if next.is_word() || next.text == "*" => {
                whole.push_str("::");
                whole.push_str(next.text);
                at += 2;
            }
            Some(next) if next.text == "{" => {
                at += 2;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = path(tokens, at, &whole, found);
                }
                return at + 1;
            }
            _ => {
                at += 1;
                break;
            }
        }
    }
    found.push((line, whole));
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank() {
        let code =
            blank("a // unsafe\nb \"unsafe \\\" x\" c /* un /* s */ x */ d 'u' 'static r#\"unsafe \"# e '\\'' f");
        let words: Vec<&str> = tokens(&code).iter().filter(|token| token.is_word()).map(|token| token.text).collect();
        assert_eq!(words, ["a", "b", "c", "d", "static", "e", "f"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn groups_are_written_out() {
        let found = paths("use std::{fs, io::{self, Read}, time::*};\nlet x = tokio::spawn(kube);");
        let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
        for expected in ["std::fs", "std::io::self", "std::io::Read", "std::time::*", "tokio::spawn", "kube"] {
            assert!(names.contains(&expected), "{expected} in {names:?}");
        }
        assert!(found.contains(&(2, "tokio::spawn".to_owned())));
    }

    #[test]
    fn a_generic_path_ends_at_its_arguments() {
        let names: Vec<String> = paths("Vec::<u8>::new()").into_iter().map(|(_, name)| name).collect();
        assert_eq!(names.first().map(String::as_str), Some("Vec"));
    }
}
