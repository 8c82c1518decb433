//! The shopping cart of the Dynamo paper: an addition is never lost. Paper: §4.4.
//!
//! ```text
//! cargo run --example cart -- 127.0.0.1:7700
//! ```
//! Two devices of one customer put into the same cart without having seen each other's put; both succeed. The next
//! reader finds two siblings, and the application, which alone knows what a cart means, merges them by union.

use std::collections::BTreeSet;

use bytes::Bytes;
use dynamo_client::{Client, Context, Error};

/// Item names, one a line. A removal can be undone by a concurrent addition, never the other way round.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cart {
    items: BTreeSet<String>,
}

impl Cart {
    fn read(bytes: &Bytes) -> Self {
        let text = String::from_utf8_lossy(bytes);
        Self {
            items: text
                .lines()
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }

    fn write(&self) -> Bytes {
        let lines: Vec<&str> = self.items.iter().map(String::as_str).collect();
        lines.join("\n").into()
    }

    /// Semantic resolution: the union of what each sibling holds.
    fn union(siblings: &[Bytes]) -> Self {
        Self {
            items: siblings
                .iter()
                .flat_map(|sibling| Self::read(sibling).items)
                .collect(),
        }
    }
}

/// Puts an item into a cart, whatever its siblings; safe to call from many devices at once.
async fn add(client: &Client, key: &str, item: &str) -> Result<(), Error> {
    let merge = |siblings: Vec<Bytes>| {
        let mut cart = Cart::union(&siblings);
        cart.items.insert(item.to_owned());
        cart.write()
    };
    client.resolve(key, merge).await.map(drop)
}

async fn show(client: &Client, key: &str) -> Result<(), Error> {
    let found = client.get(key).await?;
    println!("{} sibling(s):", found.versions.len());
    for value in found.values() {
        println!("  {:?}", Cart::read(value).items);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let client = Client::builder()
        .endpoint(endpoint)
        .connect()
        .await?
        .with_bucket("carts");
    let key = format!("cart:{}", std::process::id());

    println!("phone and laptop put into the same cart, neither having seen the other:");
    client.put(&key, "potato", &Context::none()).await?;
    client.put(&key, "onion", &Context::none()).await?;
    show(&client, &key).await?;

    println!("the phone adds a carrot: it reads, merges and writes with the context of what it read:");
    add(&client, &key, "carrot").await?;
    show(&client, &key).await?;

    let found = client.get(&key).await?;
    client.delete(&key, &found.context).await?;
    println!("checked out: the cart is deleted");
    Ok(())
}
