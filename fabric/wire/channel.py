"""The data channel between a customer's session and the node that holds its lease: frame kinds and their fields.

Frames are those of `fabric.wire.frames`; over a WebSocket one message is one frame (a sender may fragment it). The
gateway and the relay pass frames on without looking inside. A task is named by (run, task index, attempt).

Customer → node:
    fn       [FN, digest]                                       body: the packed function; digest = SHA-256 of it
             [FN, digest, at_once]                              the same of an actor: so many of its tasks run at once
    call     [CALL, run, digest, [[task, attempt, sizes], …], timeout_ms]
             body: per task the pieces of `sizes`: pickled (args, kwargs), then its out-of-band buffers
             a sixth field {name: value} is set in the tasks' environment, in a process that ran nothing before; with
             `FABRIC_CHECKPOINT` there the tasks begin with their newest checkpoints, as further attempts always do
    ack      [ACK, run, [task, …]]                              results that arrived; the node forgets them
    cancel   [CANCEL, run, [task, …]]                           an empty list: all of the run's tasks
    taken    [TAKEN, run, task, attempt, seq]                   parts up to this one were read; the node forgets them
    resume   [RESUME, run, [[task, attempt], …]]                after a reconnect: what is still owed
    ping     [PING, n]

Node → customer:
    ready    [READY, {lease, generation, node, python, cloudpickle}]   once per connection, when the lease is open
    result   [RESULT, run, [[task, attempt, status, start_ms, end_ms, gpu_ms, sizes], …]]
             body: per task the pieces of `sizes`: the codec's header, then its buffers; status as below
    part     [PART, run, task, attempt, seq, sizes]             a value of a streaming task, before its result
             body: the pieces of `sizes`, as of a result's value; seq from 0; sent again after a resume until taken
    failed   [FAILED, run, [[task, attempt, reason, message, exit_code | None], …]]
    unknown  [UNKNOWN, run, [task, …]]                          in answer to resume: never arrived here, send again
    log      [LOG, run, task, [[stream, at_ms, text], …]]       stream 1 = stdout, 2 = stderr
    progress [PROGRESS, run, task, done, total | None]
    notice   [NOTICE, reason, left_ms]                          the lease ends so soon; send no more tasks there
    closed   [CLOSED, reason, message]                          the lease is over; nothing follows
    pong     [PONG, n]

Node ↔ sandbox child: the same FN, CALL (one run's tasks), RESULT, PART and PROGRESS, and for an actor's tasks CANCEL
and TAKEN; the child adds `[READY, {…}]` once, and FAILED for a task that ran out of memory (in an actor also of its
time, or was cancelled). In its RESULTs start and end are nanoseconds of its own clock, and an eighth field may hold
named counts. `[ASK_NOTICE, after_ms]` of a child asks for the notice that a preemption would give.
`[PIECE, run, task, attempt, n]` and `[CHECKPOINT, run, task, attempt, n]` carry a piece of a checkpoint and the
manifest that makes it one; `[PIECE, digest]` and `[CHECKPOINT, run, task]` to a child put it back, before the
task's CALL.
"""

PING_PATH = "/v1/ping"
"""What a gateway and a control plane answer to everybody, with nothing: a round trip is timed by it."""

RELAY_PATH = "/v1/relay"
"""Where a control plane joins customers to gateways that they cannot reach."""

FN = "fn"
CALL = "call"
ACK = "ack"
CANCEL = "cancel"
TAKEN = "taken"
RESUME = "resume"
PING = "ping"

READY = "ready"
RESULT = "result"
PART = "part"
FAILED = "failed"
UNKNOWN = "unknown"
LOG = "log"
PROGRESS = "progress"
NOTICE = "notice"
ASK_NOTICE = "ask_notice"
PIECE = "piece"
CHECKPOINT = "checkpoint"
CLOSED = "closed"
PONG = "pong"

CHECKPOINT_OF = "FABRIC_CHECKPOINT"
"""In a task's environment: the run whose newest checkpoints this one began with."""

STATUS_VALUE = 0
"""The pieces are a value (`codec.encode`)."""
STATUS_EXCEPTION = 1
"""The pieces are an exception of the function (`codec.encode_exception`)."""
STATUS_NOT_TRANSPORTABLE = 2
"""One piece: UTF-8 text saying which part of the result cannot travel."""

MAX_TASKS_PER_FRAME = 256

MAX_AT_ONCE = 256
"""Tasks of one actor at the same time."""

MAX_COUNTERS = 16
"""Named counts of one task."""

PARTS_AHEAD = 32
"""A streaming task waits when so many of its parts, or `PART_BYTES_AHEAD` of them, were not taken yet."""

PART_BYTES_AHEAD = 4 << 20


def begun_with(checkpoint: str) -> list[dict[str, str]]:
    """The field after the timeout of a CALL whose tasks begin with this run's checkpoints; none for ""."""
    return [{CHECKPOINT_OF: checkpoint}] if checkpoint else []
