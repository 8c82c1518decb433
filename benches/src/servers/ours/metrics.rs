//! What nodes count themselves: their `/metrics`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use dynamo_local::LocalRing;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The metrics of all nodes at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(Vec<String>);

impl Metrics {
    /// Asks every node.
    pub(crate) async fn read(ring: &LocalRing) -> Result<Self> {
        let mut pages = Vec::new();
        for node in ring.nodes() {
            let page = page(node.addresses().http).await;
            pages.push(page.with_context(|| format!("cannot read the metrics of {}", node.member()))?);
        }
        Ok(Self(pages))
    }

    /// The sum of a metric over all nodes and over all series with this label, or part of one; 0 if there are none yet.
    pub(crate) fn sum(&self, name: &str, label: &str) -> f64 {
        self.0.iter().map(|page| sum(page, name, label)).sum()
    }

    /// How much a counter has grown from `self` to `later`.
    pub(crate) fn growth(&self, later: &Self, name: &str, label: &str) -> f64 {
        later.sum(name, label) - self.sum(name, label)
    }
}

async fn page(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // 1.0, so that the body comes in one piece.
    let request = format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "answered with {status}");
    Ok(body.to_owned())
}

fn sum(page: &str, name: &str, label: &str) -> f64 {
    let of_series = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let named = rest.is_empty() || rest.starts_with('{');
        (named && rest.contains(label)).then(|| value.parse::<f64>().ok())?
    };
    // Not `sum`, which makes a negative zero of nothing.
    page.lines().filter_map(of_series).fold(0.0, |all, one| all + one)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP pulled Bytes\n# TYPE pulled counter\npulled{by=\"run\"} 100\npulled{by=\"page\",x=\"1\"} 20\n\
                        pulled_more{by=\"run\"} 7\nhints 3\n";

    #[test]
    fn series_of_a_name_and_label_add_up() {
        assert_eq!(sum(PAGE, "pulled", "by=\"run\"").to_bits(), 100_f64.to_bits());
        assert_eq!(sum(PAGE, "pulled", "").to_bits(), 120_f64.to_bits());
        assert_eq!(sum(PAGE, "hints", "").to_bits(), 3_f64.to_bits());
        assert_eq!(sum(PAGE, "exchanges", "").to_bits(), 0_f64.to_bits());
    }

    #[test]
    fn a_counter_grows_on_all_nodes_together() {
        let earlier = Metrics(vec![PAGE.to_owned(), "hints 1\n".to_owned()]);
        let later = Metrics(vec![PAGE.to_owned(), "hints 9\n".to_owned()]);
        assert_eq!(earlier.growth(&later, "hints", "").to_bits(), 8_f64.to_bits());
    }
}
