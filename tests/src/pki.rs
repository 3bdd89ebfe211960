//! A certificate authority: the keys of a control plane and the kubeconfigs of those who talk to it, and API servers with TLS.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// Names of the API server besides its addresses.
const NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];

/// A certificate authority in a folder of its own.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// Makes the authority (`ca.crt`) and the keys of the tokens of service accounts (`sa.key`, `sa.pub`).
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        let mut params = named("ballast-test-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, key()?).context("cannot make an authority")?;
        let pki = Self { folder: folder.to_owned(), authority };
        pki.write("ca.crt", &pki.authority.pem())?;
        let tokens = key()?;
        pki.write("sa.key", &tokens.serialize_pem())?;
        pki.write("sa.pub", &tokens.public_key_pem())?;
        Ok(pki)
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The API server's certificate: `apiserver.crt` and `apiserver.key`.
    pub(crate) fn server(&self, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let names = NAMES.iter().map(ToString::to_string).chain(addresses.iter().map(ToString::to_string));
        let identity = self.identity(names)?;
        self.write("apiserver.crt", &identity.certificate)?;
        self.write("apiserver.key", &identity.key)
    }

    /// A certificate for an API server with these names and addresses.
    pub fn identity(&self, names: impl IntoIterator<Item = String>) -> anyhow::Result<Identity> {
        let names: Vec<String> = names.into_iter().collect();
        let mut params = CertificateParams::new(names).context("names of the API server")?;
        params.distinguished_name = named("kube-apiserver", None).distinguished_name;
        let (certificate, key) = self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(Identity { certificate, key })
    }

    /// A kubeconfig for `user` of `group`, complete in one file: `FILE.kubeconfig`.
    pub(crate) fn kubeconfig(
        &self,
        file: &str,
        (user, group): (&str, Option<&str>),
        server: SocketAddr,
    ) -> anyhow::Result<PathBuf> {
        let (certificate, key) = self.sign(named(user, group), ExtendedKeyUsagePurpose::ClientAuth)?;
        let data = |pem: &str| STANDARD.encode(pem);
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "ballast",
            "contexts": [{"name": "ballast", "context": {"cluster": "ballast", "user": user}}],
            "clusters": [{"name": "ballast", "cluster": {
                "server": format!("https://{server}"),
                "certificate-authority-data": data(&self.authority.pem()),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": data(&certificate),
                "client-key-data": data(&key),
            }}],
        });
        let name = format!("{file}.kubeconfig");
        self.write(&name, &serde_saphyr::to_string(&document).context("cannot write YAML")?)?;
        Ok(self.path(&name))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        purpose: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<(String, String)> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = key()?;
        let certificate = params.signed_by(&key, &self.authority).context("cannot sign a certificate")?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Keys are the owner's alone.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
        std::io::Write::write_all(&mut file, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A server's certificate and key, as PEM.
#[derive(Debug)]
pub struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    pub(crate) fn read(&self) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).context("no certificate")?;
        Ok((vec![certificate], PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("no key")?))
    }
}

fn key() -> anyhow::Result<KeyPair> {
    KeyPair::generate().context("cannot make a key")
}

/// To Kubernetes the common name is the user and the organisation a group of it.
fn named(user: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params
}
