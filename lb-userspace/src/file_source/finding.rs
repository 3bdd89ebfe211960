//! What is wrong with a document, said so that it can be mended.

use std::fmt;

use crate::report::Problem;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something was refused, or an older version of it is used.
    Error,
    /// Used, but perhaps not as meant.
    Warning,
}

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

/// A refusal or a warning about a field, before the place of its document is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issue {
    pub(super) field: String,
    pub(super) reason: String,
    pub(super) severity: Severity,
    pub(super) fix: String,
}

impl Issue {
    pub(super) fn error(field: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), severity: Severity::Error, fix: fix.into() }
    }

    pub(super) fn warning(field: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(field, reason, fix) }
    }
}
