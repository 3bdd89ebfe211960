//! Why a watch does not get on, in words that help.

use std::time::Duration;

use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

use super::kind::Kind;
use crate::report::Problem;

/// A list or watch did not get through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    /// What the server asked for.
    pub(super) retry_after: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The credentials cannot be read or used.
    Setup(String),
    /// No connection, or it ended.
    Unreachable(String),
    /// Whoever answers has no certificate of the API server.
    Certificate(String),
    /// The server takes too long.
    Silent,
    /// 401
    Unauthorized(String),
    /// 403
    Forbidden(String),
    /// 404
    Missing,
    /// 410, as an answer or in a watch: to be listed anew.
    Gone,
    /// 429 and 5xx
    Busy(u16, String),
    /// Any other answer.
    Refused(u16, String),
    /// Not what the API says.
    Broken(String),
    /// This program's own: what it panicked at.
    Defect(String),
}

impl Failure {
    pub(super) const fn of(cause: Cause) -> Self {
        Self { cause, retry_after: None }
    }

    pub(super) const fn setup(cause: String) -> Self {
        Self::of(Cause::Setup(cause))
    }

    pub(super) fn broken(cause: impl Into<String>) -> Self {
        Self::of(Cause::Broken(cause.into()))
    }

    /// An answer that is no success.
    pub(super) fn answer(status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Self {
        let told: Option<Status> = serde_json::from_slice(body).ok();
        let hint = told.as_ref().and_then(|told| told.details.as_ref()?.retry_after_seconds);
        let hint = hint.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
        let message = told.and_then(|told| told.message);
        let message = message.or_else(|| first_line(body)).unwrap_or_else(|| "no reason given".to_owned());
        let cause = match status.as_u16() {
            401 => Cause::Unauthorized(message),
            403 => Cause::Forbidden(message),
            404 => Cause::Missing,
            410 => Cause::Gone,
            code @ (429 | 500..=599) => Cause::Busy(code, message),
            code => Cause::Refused(code, message),
        };
        Self { cause, retry_after: retry_after.or_else(|| hint.map(Duration::from_secs)) }
    }

    /// An `ERROR` event in a watch.
    pub(super) fn event(status: &str) -> Self {
        let code = serde_json::from_str::<Status>(status).ok().and_then(|status| status.code);
        let code = code.and_then(|code| u16::try_from(code).ok()).and_then(|code| StatusCode::from_u16(code).ok());
        Self::answer(code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), status.as_bytes(), None)
    }

    /// Whether it is the same trouble, whatever the words for it are today.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (&self.cause, &other.cause) {
            // Whoever edits the file wants to know what is wrong now.
            (Cause::Setup(one), Cause::Setup(another)) => one == another,
            (Cause::Busy(one, _), Cause::Busy(another, _)) | (Cause::Refused(one, _), Cause::Refused(another, _)) => {
                one == another
            }
            (one, another) => {
                (self.is_away() && other.is_away()) || std::mem::discriminant(one) == std::mem::discriminant(another)
            }
        }
    }

    /// Whether there is nobody who answers.
    pub(super) const fn is_away(&self) -> bool {
        matches!(self.cause, Cause::Unreachable(_) | Cause::Silent)
    }

    /// Whether another server may do better.
    pub(super) const fn is_of_server(&self) -> bool {
        matches!(self.cause, Cause::Unreachable(_) | Cause::Certificate(_) | Cause::Silent | Cause::Busy(500..=599, _))
    }

    /// Whether fresh credentials may do better.
    pub(super) const fn is_of_credentials(&self) -> bool {
        matches!(self.cause, Cause::Unauthorized(_))
    }

    /// What the agent tells of a watch.
    pub(super) fn problem(&self, kind: Kind, verb: &str, server: &str) -> Problem {
        let rule = Rule { group: kind.group(), resource: kind.resource(), verbs: "list, watch" };
        self.told(format!("watch of {}", kind.resource()), &rule, verb, server)
    }

    /// What it tells of any request.
    pub(super) fn told(&self, object: String, needed: &Rule, verb: &str, server: &str) -> Problem {
        let Rule { group, resource, verbs } = needed;
        let later = "it is tried again; until then the last good state stays";
        let (cause, fix) = match &self.cause {
            Cause::Setup(cause) => (cause.clone(), later.to_owned()),
            Cause::Unreachable(cause) => {
                (format!("{server} cannot be reached: {cause}"), format!("check address and network; {later}"))
            }
            Cause::Certificate(cause) => (
                format!("{server} has a certificate that is not accepted: {cause}"),
                format!(
                    "check that it is a server of this cluster, signed by the certificate-authority of the kubeconfig (of a \
                     pod: its ca.crt), for the name that is asked for; {later}"
                ),
            ),
            Cause::Silent => (format!("{server} does not answer in time"), format!("look at its load; {later}")),
            Cause::Unauthorized(cause) => (
                format!("{server} does not accept the credentials (401): {cause}"),
                format!("renew token or certificate; they are read anew with each try; {later}"),
            ),
            Cause::Forbidden(cause) => {
                let rule = format!(r#"{{apiGroups: ["{group}"], resources: [{resource}], verbs: [{verbs}]}}"#);
                (format!("may not {verb} {resource} (403): {cause}"), format!("add the rule {rule} to the ClusterRole"))
            }
            Cause::Missing => (
                format!("{server} knows no {resource} of this API version (404)"),
                if *resource == Kind::ServiceCidr.resource() {
                    "use Kubernetes 1.33 or newer".to_owned()
                } else {
                    "every API server has them: check that the URL is one's, with no path behind it but a proxy's own"
                        .to_owned()
                },
            ),
            Cause::Gone => (
                format!("{server} no longer knows where the watch was (410)"),
                "it is listed anew; should this last, see the server's log".to_owned(),
            ),
            Cause::Busy(code, cause) => {
                (format!("{server} answers {code}: {cause}"), format!("see the server's log; {later}"))
            }
            Cause::Refused(code, cause) => {
                (format!("{server} refuses to {verb} (answer {code}): {cause}"), later.to_owned())
            }
            Cause::Broken(cause) => {
                (format!("{server} sent what is not understood: {cause}"), format!("nothing is lost: {later}"))
            }
            Cause::Defect(cause) => {
                (format!("a defect of this program: {cause}"), format!("report it, with the log; {later}"))
            }
        };
        Problem { object, cause, fix }
    }
}

/// What of a role a request needs.
pub(super) struct Rule {
    pub(super) group: &'static str,
    pub(super) resource: &'static str,
    pub(super) verbs: &'static str,
}

/// The first line that says something, cut to what a message can hold.
pub(super) fn first_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(200).collect())
}
