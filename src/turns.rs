//! Turns: callers with the same key go one after the other, in the order of their arrival.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Queues by key, within this process. An empty queue takes no memory.
#[derive(Debug)]
pub(crate) struct Turns<K: Copy + Eq + Hash>(Mutex<HashMap<K, Queue>>);

#[derive(Debug)]
struct Queue {
    /// Has one permit. It is fair: permits are given in the order in which they were asked for.
    semaphore: Arc<Semaphore>,
    /// Number of callers that wait or have their turn.
    callers: usize,
}

/// The turn of a caller, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<K: Copy + Eq + Hash> {
    // Dropped first: the next caller's turn begins before this one leaves the queue.
    _permit: OwnedSemaphorePermit,
    _place: Place<K>,
}

/// A place in a queue, from the arrival until the end of the turn.
#[derive(Debug)]
struct Place<K: Copy + Eq + Hash> {
    turns: Arc<Turns<K>>,
    key: K,
}

/// The error of a queue that is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many are waiting for their turn")]
pub(crate) struct Full;

impl<K: Copy + Eq + Hash> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> Turns<K> {
    /// Waits for the turn of a caller. The caller bounds the wait; to stop waiting, it drops the future.
    ///
    /// # Errors
    /// `max_waiting` callers wait already.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        key: K,
        max_waiting: usize,
    ) -> Result<Turn<K>, Full> {
        let (place, semaphore) = self.enter(key, max_waiting)?;
        // It cannot fail, since no semaphore is ever closed.
        let permit = semaphore.acquire_owned().await.map_err(|_closed| Full)?;
        Ok(Turn { _permit: permit, _place: place })
    }

    fn enter(
        self: &Arc<Self>,
        key: K,
        max_waiting: usize,
    ) -> Result<(Place<K>, Arc<Semaphore>), Full> {
        let mut queues = self.queues();
        let new = || Queue { semaphore: Arc::new(Semaphore::new(1)), callers: 0 };
        let queue = queues.entry(key).or_insert_with(new);
        // One has its turn and does not wait.
        if queue.callers > max_waiting {
            return Err(Full);
        }
        queue.callers += 1;
        Ok((Place { turns: Arc::clone(self), key }, Arc::clone(&queue.semaphore)))
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<K, Queue>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut queues = self.turns.queues();
        if let Some(queue) = queues.get_mut(&self.key) {
            queue.callers -= 1;
            if queue.callers == 0 {
                queues.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn callers_of_one_key_go_in_their_order() {
        let turns = Arc::new(Turns::default());
        let first = turns.wait(1, 2).await.expect("a turn");
        let mut second = pin!(turns.wait(1, 2));
        let mut third = pin!(turns.wait(1, 2));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert!(matches!(turns.wait(1, 2).await, Err(Full)));
        assert!(turns.wait(2, 0).await.is_ok());
        drop(first);
        assert!(poll!(&mut third).is_pending());
        let Poll::Ready(second) = poll!(&mut second) else { panic!("it is its turn") };
        drop(second);
        assert!(poll!(&mut third).is_ready());
    }

    #[tokio::test]
    async fn caller_that_stops_waiting_leaves_the_queue() {
        let turns = Arc::new(Turns::default());
        let first = turns.wait(1, 1).await.expect("a turn");
        {
            let mut second = pin!(turns.wait(1, 1));
            assert!(poll!(&mut second).is_pending());
        }
        let mut third = pin!(turns.wait(1, 1));
        assert!(poll!(&mut third).is_pending());
        drop(first);
        assert!(poll!(&mut third).is_ready());
    }

    #[tokio::test]
    async fn empty_queues_take_no_memory() {
        let turns = Arc::new(Turns::default());
        drop(turns.wait(1, 0).await);
        assert!(turns.queues().is_empty());
    }
}
