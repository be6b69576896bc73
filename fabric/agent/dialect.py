"""Frame kinds between our own processes, beside those of `fabric.wire.channel`.

Agent → node, the first frame of each connection:
    control    [CONTROL, token]                                 one agent; a later one takes over
    gang       [GANG, token, group, rank, rank here]           from another node: then packets between those two ranks
    channel    [CHANNEL, token, lease, generation]              then the frames of the data channel, both ways

Agent → node on the control connection:
    open       [OPEN, {lease, generation, session, run, gpus, cpu_milli, memory_bytes, startup_timeout_ms, notice_ms,
                        env, network, hosts, gang: {group, rank, peers: [address of each rank's node]} | None}]
    close      [CLOSE, lease, generation, reason]
    notice     [NOTICE, lease, generation, reason, notice_ms]   close it by yourself after so long, and tell its child
    stored     [STORED, lease, generation, n, problem]          what came under that number is durable, or why not
    piece      [PIECE, lease, generation, digest]               of a checkpoint to put back; body
    checkpoint [CHECKPOINT, lease, generation, run, task, found, problem]   its manifest; body; the answer to WANTED
    meter      [METER, offset]                                  send the journal from here on
    covered    [COVERED, offset]                                older segments may go
    prove      [PROVE, {challenge, gpu, step, …}]               one step of a GPU's challenge (`fabric.wire.link.Prove`)

Node → agent on the control connection:
    node       [NODE, {info, journal, start, end, leases: [[lease, generation, session, run], …], gang: address or ""}]
    opened     [OPENED, lease, generation]
    ended      [ENDED, lease, generation, reason, detail]
    meter      [METER, offset, [record, …]]                     from that offset of the journal on
    piece      [PIECE, lease, generation, run, task, n]         of a checkpoint; body
    checkpoint [CHECKPOINT, lease, generation, run, task, n]    its manifest; body
    wanted     [WANTED, lease, generation, run, task]           put back the newest checkpoint of this task
    logs       [LOGS, run, [[task, stream, at_ms, text], …]]
    inventory  [INVENTORY, info]                                whenever a GPU's health changed
    condition  [CONDITION, [{uuid, temperature_c, …}, …]]       every ten seconds, of real GPUs
    proved     [PROVED, {challenge, step, error, root, openings}]

Node → child:
    assign     [ASSIGN, {environment}, site, network]           once, before any function; see `Worker.assign`
and FN and CALL. Child → node: READY, RESULT, PROGRESS, and FAILED for a task that ran out of memory.
"""

CONTROL = "control"
CHANNEL = "channel"
GANG = "gang"

OPEN = "open"
CLOSE = "close"
NOTICE = "notice"
STORED = "stored"
PIECE = "piece"
CHECKPOINT = "checkpoint"
WANTED = "wanted"
METER = "meter"
COVERED = "covered"
PROVE = "prove"

NODE = "node"
OPENED = "opened"
ENDED = "ended"
LOGS = "logs"
INVENTORY = "inventory"
CONDITION = "condition"
PROVED = "proved"

ASSIGN = "assign"

STAMP_BYTES = 16
"""With the page's descriptor the child receives this many ASCII characters, which begin its log marks."""
