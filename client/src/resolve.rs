//! Read, resolve, write back, until nothing is left to resolve. Paper: §4.4, semantic reconciliation.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    client::Client,
    error::Error,
    types::{Context, Found, Written},
};

/// Rounds of one call; what is still unresolved then is left to the next one.
const ROUNDS_MAX: u32 = 8;
/// The longest pause before the second round; it doubles with each one, so that two who resolve one key part company.
const PAUSE_MAX: Duration = Duration::from_millis(10);

impl Client {
    /// Reads a key, lets `merge` make one value of all its siblings (none if the key is absent), and writes that back
    /// with the context of what was read. Paper: §4.4, semantic reconciliation.
    ///
    /// A put never fails because of a concurrent one (paper: §4.4, "always writeable"): it becomes a sibling of it. So
    /// the key is read again, and if a concurrent writer has left siblings, `merge` is called again with what is there
    /// then, its own earlier result included; at most 8 times in all. Repeating `merge` must do no harm: a union is
    /// right, an increment is not (a bucket of counters is for that, see [`Client::update`]).
    ///
    /// # Errors
    /// As [`Client::get`], except that an absent key is none, and [`Client::put`]. If the key cannot be read again after
    /// a put, the put's result is returned all the same.
    pub async fn resolve<V: Into<Bytes>>(
        &self,
        key: impl AsRef<[u8]>,
        mut merge: impl FnMut(Vec<Bytes>) -> V,
    ) -> Result<Written, Error> {
        let key = key.as_ref();
        let (mut siblings, mut context) = existing(self.get(key).await)?;
        let mut round = 1;
        loop {
            let written = match self.put(key, merge(siblings), &context).await {
                Ok(written) => Some(written),
                // Others have added siblings up to the cap meanwhile: superseding them makes room.
                Err(error) if error.reason() == "TOO_MANY_SIBLINGS" && round < ROUNDS_MAX => None,
                Err(error) => return Err(error),
            };
            let found = self.get(key).await;
            match (written, found) {
                (Some(written), Ok(found)) if found.versions.len() > 1 && round < ROUNDS_MAX => {
                    tracing::debug!(coordinator = written.info.coordinator, round, "siblings again");
                    (siblings, context) = existing(Ok(found))?;
                }
                // One value, none because of a concurrent delete, or unknown: nothing to resolve.
                (Some(written), _) => return Ok(written),
                (None, found) => (siblings, context) = existing(found)?,
            }
            let pause = PAUSE_MAX * (1 << (round - 1).min(5));
            tokio::time::sleep(pause.mul_f64(rand::random::<f64>())).await;
            round += 1;
        }
    }
}

fn existing(found: Result<Found, Error>) -> Result<(Vec<Bytes>, Context), Error> {
    match found {
        Ok(found) => Ok((
            found.versions.into_iter().map(|version| version.value).collect(),
            found.context,
        )),
        Err(Error::NotFound { context }) => Ok((Vec::new(), context)),
        Err(error) => Err(error),
    }
}
