//! The sheet of commands: a line for each with its place and what came of it, and below what it said.

/// As wide as a terminal can be taken to be.
const WIDTH: usize = 100;
/// Before a command, or a line of its output.
const INDENT: usize = 27;

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Failed(String),
    /// Nothing of these documents can be asked.
    NotTried(String),
    /// Ballast cannot do it so far.
    NotYet(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(_) => "FAILED",
            Self::NotTried(_) => "not tried",
            Self::NotYet(_) => "not yet",
        }
    }

    fn why(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Failed(why) | Self::NotTried(why) | Self::NotYet(why) => Some(why),
        }
    }
}

/// A command and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) outcome: Outcome,
    /// Where it ran.
    pub(crate) from: String,
    /// Empty if none ran.
    pub(crate) words: Vec<String>,
    pub(crate) output: String,
}

pub(crate) fn header() -> String {
    format!("  {:<10}{:<15}COMMAND AND ITS OUTPUT", "RESULT", "FROM")
}

impl Row {
    /// Without a line break at its end.
    pub(crate) fn show(&self) -> String {
        let mut lines = fold(&self.words, WIDTH - INDENT);
        lines.extend(self.output.lines().map(|line| line.trim_end().to_owned()));
        if let Some(why) = self.outcome.why() {
            lines.extend(wrap(why, WIDTH - INDENT));
        }
        // A long name pushes its command to the right, and nothing else.
        let mut text = format!("  {:<10}{:<14} ", self.outcome.word(), self.from);
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                text.push('\n');
                text.push_str(&" ".repeat(INDENT));
            }
            text.push_str(line);
        }
        text.trim_end().to_owned()
    }
}

/// The command as a shell takes it, in lines that can be copied.
fn fold(words: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (index, word) in words.iter().map(|word| quoted(word)).enumerate() {
        let mark = if index + 1 < words.len() { " \\".len() } else { 0 };
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() + mark <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            Some(line) => {
                line.push_str(" \\");
                lines.push(format!("  {word}"));
            }
            None => lines.push(format!("$ {word}")),
        }
    }
    lines
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-+_./:=[],@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn columns_are_aligned_and_lines_are_not_too_long() {
        let script = "curl -m 5 $A_SERVICE_HOST:$A_SERVICE_PORT # it's the port of this Service";
        let words = words(&["ballast", "exec", "default", "-f", "manifests", "--", "sh", "-c", script]);
        let from = "my-app-1".to_owned();
        let row = Row { outcome: Outcome::Ok, from, words, output: "one \ntwo\n".to_owned() };
        let indent = " ".repeat(INDENT);
        let expected = format!(
            "  ok        my-app-1       $ ballast exec default -f manifests -- sh -c \\\n\
             {indent}  'curl -m 5 $A_SERVICE_HOST:$A_SERVICE_PORT # it'\\''s the port of this Service'\n\
             {indent}one\n{indent}two"
        );
        assert_eq!(row.show(), expected);
        assert_eq!(header().find("COMMAND"), Some(INDENT));
        assert!(header().starts_with("  RESULT    FROM  "));
    }

    #[test]
    fn a_reason_is_told_in_full() {
        let why = "it ended with exit status 7 and said nothing at all, which is less than was to be expected of it";
        let row = Row {
            outcome: Outcome::Failed(why.to_owned()),
            from: "client".to_owned(),
            words: words(&["a"]),
            output: String::new(),
        };
        let shown = row.show();
        assert!(shown.starts_with("  FAILED    client         $ a\n"), "{shown}");
        assert!(shown.lines().all(|line| line.len() <= WIDTH), "{shown}");
        assert_eq!(shown.split_whitespace().skip(4).collect::<Vec<_>>().join(" "), why);
    }
}
