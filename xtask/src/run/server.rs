//! The server at head office: nginx in its own namespace, with its own configuration and document root.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::files::Files;
use super::namespace::Namespace;
use crate::process::Process;

/// One process in the foreground; no system service and none of the system's configuration.
const CONFIGURATION: &str = "\
daemon off;
master_process off;
user root;
pid nginx.pid;
error_log error.log;
events { worker_connections 1024; }
http {
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    server {
        listen 80;
        root files;
    }
}
";

/// Starts the server with `directory` as its own.
///
/// # Errors
/// When nginx is not installed, or does not stay up: with what it says.
pub fn start(namespace: &Namespace, directory: &Path, files: &Files) -> Result<Process> {
    let root = directory.join("files");
    std::fs::create_dir_all(&root)?;
    for file in files.all() {
        std::os::unix::fs::symlink(&file.path, root.join(&file.name))
            .with_context(|| format!("cannot offer {}", file.name))?;
    }
    let configuration = directory.join("nginx.conf");
    std::fs::write(&configuration, CONFIGURATION)?;
    let errors = directory.join("nginx.errors");
    let mut command = namespace.command("nginx")?;
    command
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(&configuration)
        .args(["-e", "error.log"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&errors)?);
    let mut server = Process::start(command, "nginx")?;
    // It writes its process id when it listens.
    for _ in 0..100 {
        if let Some(status) = server.wait_for(Duration::from_millis(50))? {
            let said = std::fs::read_to_string(&errors).unwrap_or_default();
            bail!("nginx ended ({status}): {}", said.trim());
        }
        if directory.join("nginx.pid").exists() {
            return Ok(server);
        }
    }
    bail!("nginx does not come up in 5 s")
}
