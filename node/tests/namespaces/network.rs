//! A network of namespaces: a bridge in one, and one for each node, joined to it.
//!
//! They have no names, so nothing of them outlives the processes in them: each is held by a process that ends when this one
//! does, however that ends. Mounts are made in the nodes' namespaces, and go with them.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use dynamo_local::Place;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace for networks and mounts.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        // It lives until its input ends, that is until we do.
        let command = ["--net", "--mount", "sh", "-c", "echo made && exec cat >/dev/null"];
        let mut holder = Command::new("unshare")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(
            said, "made\n",
            "cannot make a network namespace: these tests need root on Linux; its message is above"
        );
        Self { holder }
    }

    fn file(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.holder.id())
    }

    /// What runs a command in it.
    fn enter(&self) -> Vec<String> {
        let [net, mnt] = ["net", "mnt"].map(|kind| format!("--{kind}={}", self.file(kind)));
        let mount = mnt.replace("--mnt", "--mount");
        ["nsenter", &net, &mount, "--"].map(str::to_owned).to_vec()
    }

    fn sh(&self, script: &str) {
        let enter = self.enter();
        let output = Command::new(&enter[0])
            .args(&enter[1..])
            .args(["sh", "-ec", script])
            .output()
            .unwrap();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {why}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Nodes have the numbers 1 and on.
pub(crate) struct Network {
    hub: Namespace,
    nodes: Vec<Namespace>,
}

fn ip(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number as u8)
}

impl Network {
    pub(crate) fn new(nodes: usize) -> Self {
        let hub = Namespace::new();
        hub.sh("ip link set lo up; ip link add hub type bridge; ip addr add 10.77.0.1/24 dev hub; ip link set hub up");
        let nodes = (1..=nodes).map(|number| {
            let node = Namespace::new();
            hub.sh(&format!(
                "ip link add node{number} type veth peer name eth0 netns {}; ip link set node{number} master hub up",
                node.holder.id()
            ));
            let ip = ip(number);
            node.sh(&format!(
                "ip link set lo up; ip addr add {ip}/24 dev eth0; ip link set eth0 up"
            ));
            node
        });
        let nodes = nodes.collect();
        Self { hub, nodes }
    }

    /// Moves this thread, and those that it starts from now on, to where all nodes can be reached.
    pub(crate) fn enter(&self) {
        let namespace = File::open(self.hub.file("net")).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let place = |(index, node): (usize, &Namespace)| Place {
            ip: ip(index + 1),
            enter: node.enter(),
        };
        self.nodes.iter().enumerate().map(place).collect()
    }

    /// What these nodes send to those is lost.
    pub(crate) fn lose(&self, from: &[usize], to: &[usize]) {
        for receiver in to {
            let rule = |sender: &usize| format!("iptables -w 10 -A INPUT -s {} -j DROP; ", ip(*sender));
            let rules: String = from
                .iter()
                .filter(|sender| *sender != receiver)
                .map(rule)
                .collect();
            self.nodes[receiver - 1].sh(&rules);
        }
    }

    /// Nothing passes between these nodes and those.
    pub(crate) fn split(&self, some: &[usize], others: &[usize]) {
        self.lose(some, others);
        self.lose(others, some);
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        for node in &self.nodes {
            node.sh("iptables -w 10 -F INPUT");
        }
    }

    /// Moves the files of a node that does not run to a disk of this size.
    pub(crate) fn small_disk(&self, number: usize, data: &Path, mib: u32) {
        let data = data.display();
        self.nodes[number - 1].sh(&format!(
            "cp -a {data} {data}.large; mount -t tmpfs -o size={mib}m none {data}; cp -a {data}.large/. {data}"
        ));
    }

    /// Runs a script where this node runs.
    pub(crate) fn sh(&self, number: usize, script: &str) {
        self.nodes[number - 1].sh(script);
    }
}
