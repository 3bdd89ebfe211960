//! Credential plugins (`exec` of a kubeconfig's user): run here and not by `kube`, which waits for one without a limit and
//! starts another beside it. What they are told and what they answer:
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::timeout,
};

use super::failure::first_line;

/// A client is made anew so long before its credentials end, or after half of their time if that is longer.
const MARGIN: Duration = Duration::from_mins(1);
/// More than certificates, key and token take; whoever writes more is not listened to.
const LONGEST: u64 = 1 << 20;

/// Why credentials make no client.
#[derive(Debug)]
pub(super) struct Unusable {
    pub(super) cause: String,
    /// Whether they may do later, though the kubeconfig stays as it is.
    pub(super) may_pass: bool,
}

/// `ExecCredential` as a plugin answers it.
#[derive(Debug, Deserialize)]
struct Answer {
    status: Option<Given>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Given {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// The plugin of these credentials, unless others are given beside it: those are used, as `kube` has it.
pub(super) fn of(auth: &AuthInfo) -> Option<&ExecConfig> {
    let named = auth.username.is_some() && auth.password.is_some();
    let others = named || auth.token.is_some() || auth.token_file.is_some() || auth.auth_provider.is_some();
    auth.exec.as_ref().filter(|_| !others)
}

/// Puts what the plugin gives in its place. The result says when it is to be asked again, if what it gave ends. After
/// `patience` it is ended, with all it started.
pub(super) async fn resolve(auth: &mut AuthInfo, patience: Duration) -> Result<Option<Instant>, Unusable> {
    let Some(exec) = of(auth) else { return Ok(None) };
    let name = exec.command.clone().unwrap_or_default();
    let given = ask(exec, patience).await.map_err(|error| error.of(&name))?;
    let again = again(&given).map_err(|error| error.of(&name))?;
    auth.exec = None;
    if let (Some(certificate), Some(key)) = (given.client_certificate_data, given.client_key_data) {
        auth.client_certificate_data = Some(STANDARD.encode(certificate));
        auth.client_key_data = Some(STANDARD.encode(key).into());
    }
    auth.token = given.token.filter(|token| !token.is_empty()).map(Into::into);
    Ok(again)
}

fn again(given: &Given) -> Result<Option<Instant>, Unusable> {
    let Some(text) = &given.expiration_timestamp else { return Ok(None) };
    let end: Timestamp =
        text.parse().map_err(|error| Unusable::lasting(format!("its expirationTimestamp {text}: {error}")))?;
    // What has ended already leaves nothing.
    let left = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
    Ok(Instant::now().checked_add(left.saturating_sub(MARGIN.min(left / 2))))
}

impl Unusable {
    fn lasting(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), may_pass: false }
    }

    fn passing(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), may_pass: true }
    }

    fn of(self, name: &str) -> Self {
        Self { cause: format!("its plugin {name}: {}", self.cause), ..self }
    }
}

async fn ask(exec: &ExecConfig, patience: Duration) -> Result<Given, Unusable> {
    let mut child = command(exec)?.spawn().map_err(|error| {
        let hint = exec.install_hint.as_ref().map(|hint| format!("; {}", hint.trim())).unwrap_or_default();
        Unusable::lasting(format!("it cannot be started: {error}{hint}"))
    })?;
    let mut all = Group::of(&child);
    let (mut answer, mut complaints) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = timeout(patience, async {
        let ((), (), status) = tokio::join!(read(stdout, &mut answer), read(stderr, &mut complaints), child.wait());
        status
    });
    let ended = ended.await;
    let said = first_line(&complaints).map(|line| format!(": {line}")).unwrap_or_default();
    let status = match ended {
        Ok(Ok(status)) => {
            all.leave();
            status
        }
        Ok(Err(error)) => return Err(Unusable::passing(format!("it cannot be waited for: {error}"))),
        Err(_) => {
            return Err(Unusable::passing(format!(
                "no answer within {} s, it was ended{said}; it must answer where nobody types anything, so try it by hand \
                 with </dev/null",
                patience.as_secs_f32()
            )));
        }
    };
    credentials(status, &answer, &said)
}

fn credentials(status: ExitStatus, answer: &[u8], said: &str) -> Result<Given, Unusable> {
    if !status.success() {
        return Err(Unusable::passing(format!("it failed ({status}){said}")));
    }
    // JSON is YAML; there are plugins that write the latter.
    let read = std::str::from_utf8(answer).map_err(|error| error.to_string());
    let read = read.and_then(|text| serde_saphyr::from_str::<Answer>(text).map_err(|error| error.to_string()));
    let answer = read.map_err(|error| {
        let line = error.lines().next().unwrap_or_default().to_owned();
        Unusable::lasting(format!("its output is no ExecCredential: {line}"))
    })?;
    let given = answer.status.ok_or_else(|| Unusable::lasting("its ExecCredential has no status"))?;
    let has_identity = given.client_certificate_data.is_some() && given.client_key_data.is_some();
    if !has_identity && given.token.as_ref().is_none_or(String::is_empty) {
        return Err(Unusable::passing("its ExecCredential has neither a token nor a certificate with its key"));
    }
    Ok(given)
}

fn command(exec: &ExecConfig) -> Result<Command, Unusable> {
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(Unusable::lasting("interactiveMode: Always: here is nobody to be asked; set Never or IfAvailable"));
    }
    let program = exec.command.as_ref().filter(|program| !program.is_empty());
    let mut command = Command::new(program.ok_or_else(|| Unusable::lasting("exec has no command"))?);
    command.args(exec.args.iter().flatten());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let mut spec = json!({"interactive": false});
    if exec.provide_cluster_info {
        spec["cluster"] = serde_json::to_value(&exec.cluster)
            .map_err(|error| Unusable::lasting(format!("what it is told of the cluster: {error}")))?;
    }
    let told = json!({"apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec});
    command.env("KUBERNETES_EXEC_INFO", told.to_string());
    // A group of its own, so that what it starts ends with it.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// What a pipe gives before it ends or cannot be read.
async fn read(pipe: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    if let Some(pipe) = pipe
        && let Err(error) = pipe.take(LONGEST).read_to_end(into).await
    {
        tracing::debug!("a plugin's output: {error}");
    }
}

/// The processes of a plugin; ended when this is dropped before the plugin has.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// Whatever it left running on purpose, such as a cache, is its own affair.
    const fn leave(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Gone already is as good.
        if let Some(group) = self.0
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::trace!("a plugin's processes: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user whose plugin is this shell script.
    fn user(script: &str) -> AuthInfo {
        let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script]});
        serde_json::from_value(json!({"exec": exec})).expect("a user")
    }

    fn answer(status: &serde_json::Value) -> String {
        let answer =
            json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status});
        format!("echo '{answer}'")
    }

    async fn resolved(auth: &mut AuthInfo) -> Result<Option<Instant>, (String, bool)> {
        resolve(auth, Duration::from_secs(20)).await.map_err(|error| (error.cause, error.may_pass))
    }

    fn fields(auth: &AuthInfo) -> serde_json::Value {
        serde_json::to_value(auth).expect("JSON")
    }

    #[tokio::test]
    async fn credentials_take_the_plugins_place() {
        let mut auth = user(&answer(&json!({"token": "a", "future": [1]})));
        assert_eq!(resolved(&mut auth).await, Ok(None));
        assert_eq!(fields(&auth), json!({"token": "a"}));
        let identity = json!({"clientCertificateData": "certificate", "clientKeyData": "key"});
        let mut auth = user(&answer(&identity));
        assert_eq!(resolved(&mut auth).await, Ok(None));
        let encoded = json!({"client-certificate-data": "Y2VydGlmaWNhdGU=", "client-key-data": "a2V5"});
        assert_eq!(fields(&auth), encoded);
        // YAML too, and what it is told.
        let mut auth = user(r#"printf 'status:\n  token: "%s"\n' "$(echo "$KUBERNETES_EXEC_INFO" | tr -d '"')""#);
        assert_eq!(resolved(&mut auth).await, Ok(None));
        let told = fields(&auth)["token"].as_str().unwrap_or_default().to_owned();
        assert!(told.contains("kind:ExecCredential") && told.contains("interactive:false"), "{told}");
    }

    #[tokio::test]
    async fn nobody_asks_a_plugin_beside_other_credentials() {
        let mut auth = user("exit 1");
        auth.token = Some("given".to_owned().into());
        assert_eq!(resolved(&mut auth).await, Ok(None));
        assert_eq!(fields(&auth)["token"], "given");
    }

    #[tokio::test]
    async fn credentials_that_end_are_asked_for_a_minute_before() {
        for (lasts, most) in [(600, 540), (100, 50), (-10, 0)] {
            let end = Timestamp::now() + jiff::SignedDuration::from_secs(lasts);
            let mut auth = user(&answer(&json!({"token": "a", "expirationTimestamp": end.to_string()})));
            let again = resolved(&mut auth).await.expect("credentials").expect("an end");
            let left = again.saturating_duration_since(Instant::now()).as_secs();
            assert!(left <= most && left + 20 >= most, "{lasts}: {left}");
        }
        let mut auth = user(&answer(&json!({"token": "a", "expirationTimestamp": "soon"})));
        let (cause, may_pass) = resolved(&mut auth).await.expect_err("no time");
        assert!(cause.contains("its expirationTimestamp soon: ") && !may_pass, "{cause}");
    }

    #[tokio::test]
    async fn what_a_plugin_fails_with_is_told() {
        for (script, part, may_pass) in [
            ("echo; echo not now >&2; exit 3", "its plugin sh: it failed (exit status: 3): not now", true),
            ("exit 1", "it failed (exit status: 1)", true),
            ("echo '{'", "its output is no ExecCredential: ", false),
            ("echo '{}'", "has no status", false),
            (
                "echo '{\"status\": {\"clientKeyData\": \"a\", \"token\": \"\"}}'",
                "neither a token nor a certificate",
                true,
            ),
            ("head -c 2000000 /dev/zero", "its plugin sh: ", true),
        ] {
            let (cause, passing) = resolved(&mut user(script)).await.expect_err(script);
            assert!(cause.contains(part) && passing == may_pass, "{script}: {cause}");
        }
        let mut auth = user("exit");
        auth.exec.as_mut().expect("a plugin").command = Some("/nonexistent/plugin".to_owned());
        auth.exec.as_mut().expect("a plugin").install_hint = Some("install it".to_owned());
        let (cause, may_pass) = resolved(&mut auth).await.expect_err("no plugin");
        assert!(cause.contains("cannot be started") && cause.ends_with("; install it") && !may_pass, "{cause}");
    }
}
