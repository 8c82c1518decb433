//! [`LocalRing`]: starts the processes, makes them one ring, and takes single nodes and zones away and back.

mod admit;

use std::{num::NonZero, path::Path, process::ExitStatus, time::Duration};

use dynamo_proto::admin::StatusResponse;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::{
    admin,
    error::Error,
    layout::Layout,
    node::Node,
    ports::Block,
    process::{Process, Start, log_path, log_tail},
    settings::{Place, Settings},
    stored::{Description, Directory},
    watchdog::Watchdog,
};

/// For all nodes of a start to become valid; a start takes a second or two.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// Between two looks at a node that is not valid yet.
const POLL: Duration = Duration::from_millis(50);
/// Between SIGTERM and SIGKILL: above the nodes' own grace of 20 s.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// Each node is told so many others: the first ones, because node 1 is where the ring begins.
const SEEDS: usize = 2;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Every running node serves.
    Serving,
    /// Each also reaches all others.
    Acquainted,
}

/// A ring of child processes. Dropped, it kills them.
#[derive(Debug)]
pub struct LocalRing {
    settings: Settings,
    directory: Directory,
    description: Description,
    created: bool,
    ports: Block,
    // Before the watchdog: children go first.
    nodes: Vec<Node>,
    watchdog: Watchdog,
}

impl LocalRing {
    /// Starts every node of the stored ring, or of a new one, and waits until all of them are valid and reach each other.
    ///
    /// # Errors
    /// If the shape, the directory or the ports cannot be had, or a node ends or is not valid in time. Nothing is left
    /// running then; data that is there stays.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        if !Directory::has_ring(&settings.dir) {
            // Before anything is made, so that a mistake leaves no directory behind.
            settings.wanted.to_layout()?;
        }
        let directory = Directory::open(&settings.dir)?;
        let (mut description, created) = directory.load_or_create(settings.wanted)?;
        let layout = description.layout;
        for (what, quorum) in [("read", settings.read_quorum), ("write", settings.write_quorum)] {
            quorum.map_or(Ok(()), |quorum| layout.check_quorum(what, quorum))?;
        }
        let ports = match settings.port_base.or(description.port_base) {
            Some(base) => Block::reserve(base, layout.nodes, "other ports (PORT=9000, say)")?,
            None => Block::find(layout.nodes)?,
        };
        description.port_base = Some(ports.base());
        directory.save(&description)?;
        let members = layout.members().into_iter().enumerate();
        let nodes = members.map(|(index, planned)| {
            let place = settings.places.get(index).unwrap_or(&Place::LOOPBACK).clone();
            Node {
                dir: directory.of_member(&planned.member),
                member: planned.member,
                zone: planned.zone,
                addresses: ports.addresses(index, place.ip),
                place,
                process: None,
            }
        });
        let nodes = nodes.collect();
        let watchdog = Watchdog::start()?;
        let mut ring = Self {
            settings,
            directory,
            description,
            created,
            ports,
            nodes,
            watchdog,
        };
        ring.launch("all")?;
        // One that was asked too early counts as unreachable until it is probed: the first writes would go to fallbacks.
        ring.wait(Until::Acquainted).await?;
        Ok(ring)
    }

    /// The nodes, by number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The shape.
    pub fn layout(&self) -> Layout {
        self.description.layout
    }

    /// Where data and logs are, as an absolute path.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// Whether this start made the ring, rather than found it.
    pub fn created(&self) -> bool {
        self.created
    }

    /// First port of its block.
    pub fn port_base(&self) -> u16 {
        self.ports.base()
    }

    /// R and W of requests that name none.
    pub fn quorums(&self) -> (u32, u32) {
        let majority = self.layout().majority();
        let Settings {
            read_quorum,
            write_quorum,
            ..
        } = &self.settings;
        (read_quorum.unwrap_or(majority), write_quorum.unwrap_or(majority))
    }

    /// The larger of the two.
    pub fn quorum(&self) -> u32 {
        let (r, w) = self.quorums();
        r.max(w)
    }

    /// `host:port` of every node's client port.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| node.addresses.client.to_string())
            .collect()
    }

    /// Starts what `target` names (a node, a zone, or `all`) and does not run; [`LocalRing::ready`] waits for it.
    ///
    /// # Errors
    /// If there is no such node or zone, or a process cannot be started.
    pub fn launch(&mut self, target: &str) -> Result<(), Error> {
        for index in self.resolve(target)? {
            self.forget_if_ended(index);
            if self.nodes[index].process.is_none() {
                self.launch_node(index)?;
            }
        }
        Ok(())
    }

    /// [`LocalRing::launch`], and waits until every running node serves.
    ///
    /// # Errors
    /// As both.
    pub async fn start_again(&mut self, target: &str) -> Result<(), Error> {
        self.launch(target)?;
        self.ready().await
    }

    /// Kills what `target` names with SIGKILL: no goodbye, nothing flushed.
    ///
    /// # Errors
    /// If there is no such node or zone, or a process cannot be killed.
    pub async fn kill(&mut self, target: &str) -> Result<(), Error> {
        let targets = self.resolve(target)?;
        // All at once, as a zone goes.
        for &index in &targets {
            self.signal_node(index, Signal::KILL)?;
        }
        for index in targets {
            let node = &mut self.nodes[index];
            if let Some(process) = &mut node.process {
                process
                    .kill()
                    .await
                    .map_err(Error::process("kill", &node.member))?;
            }
            self.forget_if_ended(index);
        }
        Ok(())
    }

    /// Stops what `target` names with SIGTERM, all at the same time, and waits until it has gone.
    ///
    /// # Errors
    /// If there is no such node or zone; if a node ends otherwise than with status 0, or must be killed after 25 s. All
    /// are gone then all the same.
    pub async fn stop(&mut self, target: &str) -> Result<(), Error> {
        let targets = self.resolve(target)?;
        for &index in &targets {
            self.signal_node(index, Signal::TERM)?;
            // A paused process takes no other signal.
            self.signal_node(index, Signal::CONT)?;
        }
        let deadline = Instant::now() + STOP_LIMIT;
        let mut result = Ok(());
        for index in targets {
            let stopped = self.wait_stopped(index, deadline).await;
            result = result.and(stopped);
        }
        result
    }

    /// Stops what `target` names with SIGSTOP: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// If there is no such node or zone, or a process cannot be signalled.
    pub fn pause(&mut self, target: &str) -> Result<(), Error> {
        self.set_paused(target, true)
    }

    /// Lets what `target` names go on.
    ///
    /// # Errors
    /// If there is no such node or zone, or a process cannot be signalled.
    pub fn resume(&mut self, target: &str) -> Result<(), Error> {
        self.set_paused(target, false)
    }

    /// Exchanges the places of two nodes that do not run: each comes back at the other's addresses.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn swap_places(&mut self, one: &str, other: &str) -> Result<(), Error> {
        let (one, other) = (self.resolve(one)?[0], self.resolve(other)?[0]);
        let (place, addresses) = (self.nodes[one].place.clone(), self.nodes[one].addresses);
        self.nodes[one].place = std::mem::replace(&mut self.nodes[other].place, place);
        self.nodes[one].addresses = std::mem::replace(&mut self.nodes[other].addresses, addresses);
        Ok(())
    }

    /// Makes every running node a member and waits until all serve.
    ///
    /// # Errors
    /// If one ends or does not serve after 60 s: with its last words.
    pub async fn ready(&mut self) -> Result<(), Error> {
        self.wait(Until::Serving).await
    }

    async fn wait(&mut self, until: Until) -> Result<(), Error> {
        let began = Instant::now();
        let mut said = usize::MAX;
        loop {
            let mut waiting = self.admit().await?;
            if waiting.is_empty() && until == Until::Acquainted {
                waiting = self.strangers().await;
            }
            let Some((index, reason)) = waiting.first() else {
                return Ok(());
            };
            if began.elapsed() >= READY_LIMIT {
                return Err(self.not_ready(*index, reason, began.elapsed()));
            }
            if waiting.len() != said && began.elapsed() > Duration::from_secs(1) {
                said = waiting.len();
                let text = format!(
                    "waiting for {said} of {} nodes; {}: {reason}",
                    self.nodes.len(),
                    self.nodes[*index].member
                );
                (self.settings.progress)(&text);
            }
            sleep(POLL).await;
        }
    }

    /// Nodes that ended without being asked to, since the last call.
    pub fn ended(&mut self) -> Vec<Error> {
        let ended = (0..self.nodes.len()).filter_map(|index| self.ended_node(index));
        ended.collect()
    }

    /// What a node says about itself; the error is for people.
    pub async fn status(&self, member: &str) -> Result<StatusResponse, String> {
        match self.nodes.iter().find(|node| node.member == member) {
            Some(node) => admin::status(node.addresses.admin).await,
            None => Err(format!("there is no {member}")),
        }
    }

    fn launch_node(&mut self, index: usize) -> Result<(), Error> {
        let (seeds, options) = (self.seeds(index), self.options());
        let node = &mut self.nodes[index];
        let start = Start {
            binary: &self.settings.node_program,
            dir: &node.dir,
            place: &node.place,
            addresses: node.addresses,
            seeds: &seeds,
            options: &options,
        };
        let process = Process::start(&node.member, &start)?;
        self.watchdog.add(process.id)?;
        node.process = Some(process);
        Ok(())
    }

    fn options(&self) -> Vec<String> {
        let Settings {
            read_quorum,
            write_quorum,
            durability,
            log_level,
            ..
        } = &self.settings;
        // They share this machine's processors.
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let share = (processors / self.nodes.len().max(1)).max(1);
        let threads = self.settings.threads.unwrap_or(share);
        let pairs = [
            ("--threads", Some(threads.to_string())),
            ("--read-quorum", read_quorum.map(|quorum| quorum.to_string())),
            ("--write-quorum", write_quorum.map(|quorum| quorum.to_string())),
            ("--durability", durability.clone()),
            ("--log-level", Some(log_level.clone())),
        ];
        let given = pairs
            .into_iter()
            .filter_map(|(flag, value)| Some([flag.to_owned(), value?]));
        given.flatten().chain(self.settings.options.clone()).collect()
    }

    fn seeds(&self, index: usize) -> Vec<String> {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
        others
            .take(SEEDS)
            .map(|(_, node)| node.addresses.peer.to_string())
            .collect()
    }

    fn resolve(&self, target: &str) -> Result<Vec<usize>, Error> {
        let named = |node: &Node| target == "all" || node.member == target || node.zone == target;
        let found: Vec<usize> = (0..self.nodes.len())
            .filter(|&index| named(&self.nodes[index]))
            .collect();
        if found.is_empty() {
            let Layout { nodes, zones, .. } = self.layout();
            let last = ('a'..='z').nth(zones as usize - 1).unwrap_or('z');
            let known = format!("node-1 to node-{nodes}, zone-a to zone-{last}");
            return Err(Error::Unknown {
                name: target.to_owned(),
                known,
            });
        }
        Ok(found)
    }

    fn set_paused(&mut self, target: &str, paused: bool) -> Result<(), Error> {
        for index in self.resolve(target)? {
            self.signal_node(index, if paused { Signal::STOP } else { Signal::CONT })?;
            if let Some(process) = &mut self.nodes[index].process {
                process.paused = paused;
            }
        }
        Ok(())
    }

    fn signal_node(&mut self, index: usize, signal: Signal) -> Result<(), Error> {
        let node = &mut self.nodes[index];
        match &mut node.process {
            Some(process) => process
                .signal(signal)
                .map_err(Error::process("signal", &node.member)),
            None => Ok(()),
        }
    }

    async fn wait_stopped(&mut self, index: usize, deadline: Instant) -> Result<(), Error> {
        let node = &mut self.nodes[index];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let limit = deadline.saturating_duration_since(Instant::now());
        let ended = process
            .wait(limit)
            .await
            .map_err(Error::process("wait for", &node.member))?;
        if ended.is_none() {
            process
                .kill()
                .await
                .map_err(Error::process("kill", &node.member))?;
        }
        let log = log_path(&node.dir);
        let member = node.member.clone();
        self.forget_if_ended(index);
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Error::Unclean {
                member,
                how: status.to_string(),
                log,
            }),
            None => {
                let how = format!("it was killed after {} s", STOP_LIMIT.as_secs());
                Err(Error::Unclean { member, how, log })
            }
        }
    }

    /// Takes note that a process has ended, if it has.
    fn forget_if_ended(&mut self, index: usize) -> Option<ExitStatus> {
        let node = &mut self.nodes[index];
        let process = node.process.as_mut()?;
        let status = process.ended()?;
        self.watchdog.remove(process.id);
        node.process = None;
        Some(status)
    }

    fn ended_node(&mut self, index: usize) -> Option<Error> {
        let status = self.forget_if_ended(index)?;
        let node = &self.nodes[index];
        let log = log_path(&node.dir);
        let tail = log_tail(&log);
        Some(Error::Ended {
            member: node.member.clone(),
            status: status.to_string(),
            log,
            tail,
        })
    }

    fn not_ready(&self, index: usize, reason: &str, waited: Duration) -> Error {
        let node = &self.nodes[index];
        let log = log_path(&node.dir);
        Error::NotReady {
            member: node.member.clone(),
            waited_s: waited.as_secs(),
            reason: reason.to_owned(),
            tail: log_tail(&log),
            log,
        }
    }
}

impl Drop for LocalRing {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = node.process.as_mut() {
                process.kill_now();
                self.watchdog.remove(process.id);
            }
        }
    }
}
