//! The container images that the cluster and the suite ask for, under the names of the published ones, put together from the
//! programs of tests/cluster and from Debian's.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster,
    deploy::{
        elf,
        oci::{self, Files, Start},
    },
    root, step, tools,
};

const E2E: &str = "registry.k8s.io/e2e-test-images";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What tests call in agnhost's pods. Debian's busybox has a wget of its own, which lacks options that they use.
const TOOLS: [&str; 12] =
    ["bash", "dash", "curl", "wget", "nc", "ss", "ip", "socat", "iperf", "ipcs", "openssl", "hostname"];
/// What they call to resolve names, there and in pods whose resolver is glibc's.
const RESOLVERS: [&str; 4] = ["dig", "nslookup", "host", "getent"];

/// Makes all of them, one tar each; `bin` has the programs.
pub(super) fn make(bin: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let save = |file: &str, name: &str, files: &Files, start: Start<'_>| {
        let path = folder.join(file);
        fs::write(&path, oci::image(name, files, start)?).with_context(|| format!("cannot write {}", path.display()))
    };
    let agnhost = read(&bin.join("agnhost"))?;

    let mut files = Files::default();
    files.file("/agnhost", agnhost.clone(), 0o755);
    let start = Start { entrypoint: &["/agnhost", "pause"], path: PATH, ..Start::default() };
    save("pause.tar", &name("Pause")?, &files, start)?;

    let mut files = system();
    tool(&mut files, "wget")?;
    busybox(&mut files)?;
    save("busybox.tar", &name("BusyBox")?, &files, Start { command: &["sh"], path: PATH, ..Start::default() })?;

    let mut files = system();
    files.file("/agnhost", agnhost, 0o755);
    files.link("/agnhost-2", "agnhost");
    files.file("/coredns", read(&bin.join("coredns"))?, 0o755);
    files.open_directory("/uploads");
    files.link("/bin/sh", "/usr/bin/dash");
    for name in TOOLS.into_iter().chain(RESOLVERS) {
        tool(&mut files, name)?;
    }
    busybox(&mut files)?;
    let porter = source()?.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        files.file(&format!("/{file}"), read(&porter.join(file))?, 0o644);
    }
    let start = Start { entrypoint: &["/agnhost"], command: &["pause"], path: PATH };
    save("agnhost.tar", &name("Agnhost")?, &files, start)?;

    save(
        "glibc-dns-testing.tar",
        &name("GlibcDnsTesting")?,
        &resolver(bin)?,
        Start { path: PATH, ..Start::default() },
    )?;

    let files = nginx()?;
    for (file, id) in [("nginx.tar", "Nginx"), ("nginx-new.tar", "NginxNew")] {
        save(
            file,
            &name(id)?,
            &files,
            Start { command: &["nginx", "-g", "daemon off;"], path: PATH, ..Start::default() },
        )?;
    }

    let mut files = Files::default();
    files.file("/coredns", read(&bin.join("coredns"))?, 0o755);
    save("coredns.tar", &coredns_name()?, &files, Start { entrypoint: &["/coredns"], path: PATH, ..Start::default() })
}

/// The full name of an image that the suite asks for (test/utils/image/manifest.go).
pub(super) fn name(id: &str) -> Result<String> {
    let path = source()?.join("test/utils/image/manifest.go");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (image, tag) = image(&text, id).with_context(|| format!("{} has no image {id}", path.display()))?;
    let registry = if id == "Pause" { "registry.k8s.io" } else { E2E };
    Ok(format!("{registry}/{image}:{tag}"))
}

/// `CoreDNS`'s, by the version it is built of.
pub(super) fn coredns_name() -> Result<String> {
    Ok(format!("registry.k8s.io/coredns/coredns:{}", cluster::version("coredns")?))
}

/// For people.
pub(super) fn versions() -> Result<String> {
    let of = |name: &str| cluster::version(name);
    Ok(format!(
        "Kubernetes {}, containerd {}, CNI plugins {}, CoreDNS {}, etcd {}",
        of("e2e.test")?,
        of("containerd")?,
        of("ptp")?,
        of("coredns")?,
        of("etcd")?
    ))
}

/// Name and tag, of a line such as `configs[Pause] = Config{list.GcRegistry, "pause", "3.10"}`.
fn image<'a>(manifest: &'a str, id: &str) -> Option<(&'a str, &'a str)> {
    let start = format!("configs[{id}]");
    let line = manifest.lines().find(|line| line.trim_start().starts_with(&start))?;
    let mut quoted = line.split('"').skip(1).step_by(2);
    Some((quoted.next()?, quoted.next()?))
}

/// Kubernetes' source, where Go unpacked it.
fn source() -> Result<PathBuf> {
    let folder = root::workspace().join("tests/cluster/kubernetes-e2e");
    let mut list = Command::new(cluster::go()?);
    list.current_dir(folder).args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]);
    let found = step::ask(&mut list).map(|text| PathBuf::from(text.trim())).filter(|path| path.is_dir());
    found.with_context(|| format!("`{}` names no folder", step::show(&list)))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What a small distribution has.
fn system() -> Files {
    let mut files = Files::default();
    for folder in ["/root", "/var", "/run", "/dev", "/proc", "/sys"] {
        files.directory(folder);
    }
    for folder in ["/tmp", "/var/tmp"] {
        files.open_directory(folder);
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nuser-defined-in-image:x:1000:1000::/home/user:/bin/sh\n";
    let groups = "root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n";
    files.file("/etc/passwd", users.as_bytes().to_vec(), 0o644);
    files.file("/etc/group", groups.as_bytes().to_vec(), 0o644);
    files.file("/etc/nsswitch.conf", b"hosts: files dns\n".to_vec(), 0o644);
    files
}

/// A program of this machine with its libraries.
fn tool(files: &mut Files, name: &str) -> Result<()> {
    let Some(found) = tools::find(name) else { bail!("no program {name} on this machine") };
    files.file(&format!("/usr/bin/{name}"), read(&found)?, 0o755);
    if !files.has(&format!("/bin/{name}")) {
        files.link(&format!("/bin/{name}"), &format!("/usr/bin/{name}"));
    }
    libraries(files, &found)
}

fn libraries(files: &mut Files, program: &Path) -> Result<()> {
    for library in elf::libraries(program)? {
        let mode = fs::metadata(&library).map_or(0o755, |found| found.permissions().mode() & 0o777);
        files.file(&library.display().to_string(), read(&library)?, mode);
    }
    Ok(())
}

/// busybox, under every name of it that nothing else has.
fn busybox(files: &mut Files) -> Result<()> {
    let program = Path::new("/bin/busybox");
    files.file("/bin/busybox", read(program)?, 0o755);
    libraries(files, program)?;
    let names = step::ask(Command::new(program).arg("--list")).context("busybox does not list its names")?;
    for name in names.lines().filter(|name| !name.is_empty()) {
        let path = format!("/bin/{name}");
        if !files.has(&path) {
            files.link(&path, "/bin/busybox");
        }
    }
    Ok(())
}

/// What asks for names by glibc's resolver (test/images/glibc-dns-testing).
fn resolver(bin: &Path) -> Result<Files> {
    let mut files = system();
    files.link("/bin/sh", "/usr/bin/dash");
    for name in ["dash", "hostname"].into_iter().chain(RESOLVERS) {
        tool(&mut files, name)?;
    }
    files.file("/coredns", read(&bin.join("coredns"))?, 0o755);
    busybox(&mut files)?;
    Ok(files)
}

fn nginx() -> Result<Files> {
    let mut files = system();
    tool(&mut files, "nginx")?;
    busybox(&mut files)?;
    for folder in ["/var/lib/nginx", "/var/log/nginx", "/usr/share/nginx/html"] {
        files.open_directory(folder);
    }
    files.file("/usr/share/nginx/html/index.html", b"<h1>Welcome to nginx!</h1>\n".to_vec(), 0o644);
    let config = "user root;\npid /run/nginx.pid;\nerror_log /dev/stderr;\nevents {}\nhttp {\n  access_log /dev/stdout;\n  \
                  server { listen 80; root /usr/share/nginx/html; }\n}\n";
    files.file("/etc/nginx/nginx.conf", config.as_bytes().to_vec(), 0o644);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tags_are_read_from_kubernetes_list() {
        let text = "\tconfigs[Nginx] = Config{list.PromoterE2eRegistry, \"nginx\", \"1.14-4\"}\n\tconfigs[NginxNew] = Config{list.PromoterE2eRegistry, \"nginx\", \"1.15-4\"}\n\
                    \tconfigs[GlibcDnsTesting] = Config{list.PromoterE2eRegistry, \"glibc-dns-testing\", \"2.1.1\"}\n\tconfigs[Half] = Config{a, \"b\"}\n";
        assert_eq!(
            ["Nginx", "NginxNew", "GlibcDnsTesting", "Pause", "Half"].map(|id| image(text, id)),
            [Some(("nginx", "1.14-4")), Some(("nginx", "1.15-4")), Some(("glibc-dns-testing", "2.1.1")), None, None]
        );
    }
}
