//! Waiting for conditions, each with a deadline. Nothing else in the tests sleeps.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(500);

/// So many seconds.
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// What one look showed.
pub enum Look<T> {
    /// The condition holds.
    Done(T),
    /// Not yet; the text says what is, for the message when time runs out.
    NotYet(String),
}

/// Looks until the condition holds, and returns what it found. An error of a look counts as "not yet": API servers and
/// nodes may be away for a while.
///
/// # Errors
/// With the last thing seen, if the condition does not hold within `limit`.
pub async fn until<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Look<T>>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let last = match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(Look::Done(found))) => return Ok(found),
            Ok(Ok(Look::NotYet(last))) => last,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the last look took too long".into(),
        };
        if Instant::now() + POLL >= deadline {
            bail!("waited {} s in vain until {what}; last: {last}", limit.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Looks until `end`, and fails as soon as a look does.
///
/// # Errors
/// With the first failed look.
pub async fn hold<F>(what: &str, end: Instant, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    while Instant::now() < end {
        if let Err(error) = look().await {
            return Err(error.context(format!("it should have held that {what}")));
        }
        tokio::time::sleep_until(end.min(Instant::now() + 4 * POLL)).await;
    }
    Ok(())
}
