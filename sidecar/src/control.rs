//! The thread of what must not wait for other work: the driver, the connections to peers, the lease and the heartbeat row.
//!
//! One thread, because they talk with each other all the time: what one of them wakes here is done next, while a thread
//! that has to be woken for it costs a quiet node more than all the work itself. And a thread of their own, so that no
//! request over REST, no copy and no batch of changes is ever in front of them. One that must wait for a disk says so
//! (`block_in_place`); the others then go on in another thread.

use std::io;
use tokio::runtime::{Builder, Handle, Runtime};

/// Ends, without waiting for its tasks, when it is dropped.
pub struct Control(Option<Runtime>);

impl Control {
    /// # Errors
    /// The system gives no thread, or no more files.
    pub fn start() -> io::Result<Control> {
        // Not the runtime that is called "current thread": it has nobody to hand its tasks to when one of them blocks.
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("pgquorum-control").enable_all().build()?;
        Ok(Control(Some(runtime)))
    }

    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is taken only at its end").handle()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The usual end would block, which is not allowed where other tasks run.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn who_waits_for_a_disk_does_not_keep_the_others_waiting() {
        let control = Control::start().unwrap();
        let (free, freed) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let (woken, is_woken) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        // The other one is woken in the moment before, so that it stands in the queue behind the one that blocks.
        control.handle().spawn(async move {
            is_woken.await.unwrap();
            answer.send(()).unwrap();
        });
        let blocks = control.handle().spawn(async move {
            woken.send(()).unwrap();
            begun.send(()).unwrap();
            tokio::task::block_in_place(|| freed.recv().unwrap());
        });
        has_begun.await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), answered)
            .await
            .expect("the other task goes on")
            .unwrap();
        free.send(()).unwrap();
        blocks.await.unwrap();
    }
}
