//! The pool: executors on arbiters, items handed out in turn. How many nodes run at once is the semaphore's to say;
//! an executor runs many, so one a thread is enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::actors::executor::NodeExecutor;
use crate::actors::messages::Execute;
use crate::actors::supervise::Post;

/// The executors by their posts.
#[derive(Clone)]
pub struct ExecutorPool {
    posts: Arc<[Post<NodeExecutor>]>,
    next: Arc<AtomicUsize>,
}

impl ExecutorPool {
    /// A pool of these executors.
    pub fn new(posts: Vec<Post<NodeExecutor>>) -> Self {
        Self { posts: posts.into(), next: Arc::default() }
    }

    /// Hands the item to the next living executor. If none lives, or the chosen one dies with the message in its
    /// mailbox, the item's custody is dropped: the entry is then ours and unheld, and the reader's next pass over
    /// such entries starts it again. That is why `do_send` is right here.
    pub fn dispatch(&self, execute: Execute) {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        for offset in 0..self.posts.len() {
            if let Some(addr) = self.posts[(start + offset) % self.posts.len()].addr() {
                addr.do_send(execute);
                return;
            }
        }
        tracing::warn!(work.id = %execute.delivery.work_id, "no executor lives, the entry stays for a later pass");
    }
}
