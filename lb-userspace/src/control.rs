//! The agent's socket: one JSON line asks, one JSON line answers. Root only.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::report::{ServiceDetail, ServiceRow, Status};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// `ballast status`.
    Status,
    /// `ballast service list`.
    Services,
    /// `ballast service describe`.
    Describe {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Services`].
    Services(Vec<ServiceRow>),
    /// To [`Request::Describe`].
    Detail(Box<ServiceDetail>),
    /// There is no such Service.
    NotFound {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// The question could not be answered.
    Error {
        /// Why.
        message: String,
    },
}

/// A question with the way to answer it.
pub type Asked = (Request, oneshot::Sender<Response>);

/// Longest question.
const LINE: u64 = 64 * 1024;
/// Time a client has to say it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Clients at a time.
const CLIENTS: usize = 32;

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
}

impl Server {
    /// Listens in the state directory. The caller holds its lock: a socket that is there already is a dead agent's.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = path(state_dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener })
    }

    /// Accepts in the background; each question arrives at the receiver.
    pub fn serve(self) -> mpsc::Receiver<Asked> {
        let (sender, receiver) = mpsc::channel(CLIENTS);
        let room = Arc::new(Semaphore::new(CLIENTS));
        tokio::spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
                let stream = match self.listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!("control socket: {error}");
                        tokio::time::sleep(PATIENCE).await;
                        continue;
                    }
                };
                if sender.is_closed() {
                    return;
                }
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve_one(stream, sender).await {
                        tracing::debug!("control socket: {error}");
                    }
                    drop(permit);
                });
            }
        });
        receiver
    }
}

/// Whether a user may ask. The socket's mode says so too, but a directory may have been made too open by hand.
const fn may_ask(user: u32, own: u32) -> bool {
    user == 0 || user == own
}

async fn serve_one(mut stream: UnixStream, sender: mpsc::Sender<Asked>) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LINE));
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let response = match serde_json::from_str(&line) {
        _ if !may_ask(user, rustix::process::geteuid().as_raw()) => {
            Response::Error { message: format!("user {user} may not ask, root may") }
        }
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            let gone = || Response::Error { message: "the agent is stopping".to_owned() };
            match sender.send((request, answer)).await {
                Ok(()) => timeout(ANSWER, answered).await?.unwrap_or_else(|_| gone()),
                Err(_) => gone(),
            }
        }
        Err(error) => Response::Error { message: format!("not a request: {error}") },
    };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    timeout(PATIENCE, write.write_all(&text)).await??;
    Ok(())
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent runs on {state_dir}; start one with `ballast run`, or name its --state-dir")]
    NotRunning {
        /// Where we looked.
        state_dir: PathBuf,
    },
    /// Not ours to ask.
    #[error("the control socket in {state_dir} is for root only; run this command as root")]
    Denied {
        /// Where.
        state_dir: PathBuf,
    },
    /// Something else.
    #[error("the agent on {state_dir} did not answer: {cause}; see its log")]
    Failed {
        /// Where.
        state_dir: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Asks the agent of a state directory.
pub async fn ask(state_dir: &Path, request: &Request) -> Result<Response, AskError> {
    let failed = |cause: io::Error| {
        let state_dir = state_dir.to_owned();
        match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
                AskError::NotRunning { state_dir }
            }
            io::ErrorKind::PermissionDenied => AskError::Denied { state_dir },
            _ => AskError::Failed { state_dir, cause },
        }
    };
    let answer = async {
        let mut stream = UnixStream::connect(path(state_dir)).await?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(serde_json::from_slice(&answer)?)
    };
    match timeout(ANSWER + PATIENCE, answer).await {
        Ok(result) => result.map_err(failed),
        Err(elapsed) => Err(failed(elapsed.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::soon;

    #[tokio::test]
    async fn a_question_gets_its_answer_and_nonsense_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let server = Server::bind(directory.path()).expect("a server");
        let mode = fs::metadata(path(directory.path())).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut requests = server.serve();
        let agent = tokio::spawn(async move {
            let (request, answer) = requests.recv().await.expect("a question");
            assert_eq!(request, Request::Services);
            answer.send(Response::Services(Vec::new())).expect("somebody waits");
            requests
        });
        let answer = ask(directory.path(), &Request::Services).await.expect("an answer");
        assert_eq!(answer, Response::Services(Vec::new()));
        let _requests = agent.await.expect("the agent");
        let mut stream = UnixStream::connect(path(directory.path())).await.expect("a connection");
        stream.write_all(b"nonsense\n").await.expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        assert!(text.contains("not a request"), "{text}");
    }

    #[test]
    fn root_and_the_own_user_may_ask() {
        assert!(may_ask(0, 1000) && may_ask(1000, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
    }

    #[tokio::test]
    async fn nobody_there_is_told_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = ask(directory.path(), &Request::Status).await.expect_err("nobody");
        assert!(matches!(error, AskError::NotRunning { .. }), "{error}");
        drop(Server::bind(directory.path()).expect("a server"));
        soon(|| match std::os::unix::net::UnixStream::connect(path(directory.path())) {
            Ok(_) => Err("somebody listens"),
            Err(_) => Ok(()),
        });
        let error = ask(directory.path(), &Request::Status).await.expect_err("a dead socket");
        assert!(matches!(error, AskError::NotRunning { .. }), "{error}");
    }
}
