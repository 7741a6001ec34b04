//! Everything that a run is made of, put together: namespaces, cables, server, and the two boxes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::boxes::{self, Machine};
use super::client::Fetch;
use super::files::{Files, Served};
use super::line::{LineConfig, Site};
use super::live::Live;
use super::namespace::{self, Namespace};
use super::observe::Pcap;
use super::wires::Wires;
use super::{CLIENT, DIRECT, SERVER, server};
use crate::accel::{self, Accelerator};
use crate::process::{Process, Scratch};

/// What the scratch directory's file with the owner's process id is called.
const OWNER: &str = "owner";
/// How `Scratch` names what it makes for a run.
const PURPOSE: &str = "run";

/// The parts. They end in this order.
pub struct Lab {
    machines: [Option<Machine>; 2],
    _server: Process,
    /// The cables.
    pub wires: Wires,
    /// Where the client lives.
    pub client: Namespace,
    _server_namespace: Namespace,
    scratch: Scratch,
    disks: Option<[PathBuf; 2]>,
    /// What executes the boxes' instructions.
    pub accelerator: Accelerator,
    live: Live,
}

impl Lab {
    /// Client, server and line, with both boxes off. `image` is what the boxes will boot.
    ///
    /// # Errors
    /// When something cannot be made; what was made by then is removed.
    pub fn new(
        image: Option<&Path>,
        files: &Files,
        line: &LineConfig,
        capture: Option<&Path>,
        live: &Live,
    ) -> Result<Lab> {
        let scratch = Scratch::new(PURPOSE)?;
        let directory = scratch.path();
        std::fs::write(directory.join(OWNER), std::process::id().to_string())?;
        let (client, client_card) =
            Namespace::new("client", "52:54:00:4d:03:01", &[format!("{CLIENT}/16")])?;
        let addresses = [format!("{SERVER}/16"), format!("{DIRECT}/16")];
        let (server_namespace, server_card) =
            Namespace::new("server", "52:54:00:4d:04:01", &addresses)?;
        let pcap = capture.map(Pcap::create).transpose()?;
        let wires = Wires::new(directory, line, [client_card, server_card], pcap)?;
        live.state().meter = Some(wires.meter());
        let server = server::start(&server_namespace, directory, files)?;
        let disks = image
            .map(|image| boxes::make_disks(image, directory))
            .transpose()?;
        Ok(Lab {
            machines: [None, None],
            _server: server,
            wires,
            client,
            _server_namespace: server_namespace,
            disks,
            scratch,
            accelerator: accel::best(),
            live: live.clone(),
        })
    }

    fn slot(&mut self, site: Site) -> &mut Option<Machine> {
        let [branch, core] = &mut self.machines;
        match site {
            Site::Branch => branch,
            Site::Core => core,
        }
    }

    /// Switches a box on.
    ///
    /// # Errors
    /// When its machine cannot be started.
    pub fn power_on(&mut self, site: Site) -> Result<()> {
        let [branch, core] = self.disks.as_ref().context("there is no image to boot")?;
        let disk = match site {
            Site::Branch => branch,
            Site::Core => core,
        };
        let machine = Machine::power_on(
            site,
            self.accelerator,
            self.scratch.path(),
            disk,
            &self.wires,
            &self.live,
        )?;
        *self.slot(site) = Some(machine);
        Ok(())
    }

    /// Pulls a box's mains plug.
    ///
    /// # Errors
    /// When the cables are gone.
    pub fn power_off(&mut self, site: Site) -> Result<()> {
        match self.slot(site).take() {
            Some(machine) => machine.power_off(&self.wires, &self.live),
            None => Ok(()),
        }
    }

    /// Is the box on?
    pub fn is_on(&self, site: Site) -> bool {
        self.live.state().site(site).power
    }

    /// An error if a box's machine has ended by itself.
    ///
    /// # Errors
    /// With what QEMU said.
    pub fn check_alive(&mut self) -> Result<()> {
        self.machines
            .iter_mut()
            .flatten()
            .try_for_each(Machine::check_alive)
    }

    /// Starts fetching a file in the branch.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn fetch<'a>(&self, address: &str, file: &'a Served, limit: Duration) -> Result<Fetch<'a>> {
        Fetch::start(&self.client, address, file, limit)
    }

    /// The directory with sockets, disks and consoles.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The namespace of the server, for hints.
    pub fn server_name(&self) -> &str {
        self._server_namespace.name()
    }
}

/// Removes what runs that were killed have left behind. Gives what it removed.
pub fn remove_leftovers() -> Vec<String> {
    let mut removed = namespace::remove_leftovers();
    let scratch_prefix = format!("outpost-{PURPOSE}-");
    for entry in std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        let ours = entry
            .file_name()
            .to_string_lossy()
            .starts_with(&scratch_prefix);
        let owner = std::fs::read_to_string(path.join(OWNER))
            .ok()
            .and_then(|text| text.parse().ok());
        if ours
            && owner.is_some_and(|pid| !namespace::is_a_run(pid))
            && std::fs::remove_dir_all(&path).is_ok()
        {
            removed.push(path.display().to_string());
        }
    }
    removed
}
