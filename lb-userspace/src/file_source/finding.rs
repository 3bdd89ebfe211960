//! What is wrong with a document, said so that it can be mended.

use std::fmt;

use crate::{convert::Severity, report::Problem};

/// One thing that is wrong with the documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File; `-` for standard input.
    pub file: String,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// `Service default/web`.
    pub object: Option<String>,
    /// `spec.ports[0].port`.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// How bad.
    pub severity: Severity,
    /// What to do.
    pub fix: String,
}

impl Finding {
    /// Whether this is the other one, which may have been at another line.
    pub(crate) fn is_again(&self, other: &Self) -> bool {
        *self == Self { line: self.line, ..other.clone() }
    }

    fn place(&self) -> String {
        self.line.map_or_else(|| self.file.clone(), |line| format!("{}:{line}", self.file))
    }

    fn cause(&self) -> String {
        self.field.as_ref().map_or_else(|| self.reason.clone(), |field| format!("{field}: {}", self.reason))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place())?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        write!(f, "{} ({})", self.cause(), self.fix)
    }
}

impl From<&Finding> for Problem {
    fn from(finding: &Finding) -> Self {
        let (object, cause) = match &finding.object {
            Some(object) => (object.clone(), format!("{}: {}", finding.place(), finding.cause())),
            None => (format!("file {}", finding.place()), finding.cause()),
        };
        Self { object, cause, fix: finding.fix.clone() }
    }
}
