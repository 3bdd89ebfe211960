//! What is wrong with an object.

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something was refused, or an older version of it is used.
    Error,
    /// Used, but perhaps not as meant.
    Warning,
}

/// A refusal or a warning about a field, wherever the object came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issue {
    pub(crate) field: String,
    pub(crate) reason: String,
    pub(crate) severity: Severity,
    pub(crate) fix: String,
}

impl Issue {
    pub(crate) fn error(field: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), severity: Severity::Error, fix: fix.into() }
    }

    pub(crate) fn warning(field: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(field, reason, fix) }
    }
}

impl Issue {
    /// What is wrong, with the field.
    pub(crate) fn cause(&self) -> String {
        if self.field.is_empty() || self.field == "." {
            return self.reason.clone();
        }
        format!("{}: {}", self.field, self.reason)
    }
}
