"""schema: the tables of the store, as SQL. Touches nothing.

Ids are the 16 bytes of a UUID, instants are whole microseconds since 1970 in UTC, flags are 0 and 1.
A migration only ever adds, so that a device that went back to an older release can still read and write its store.
"""

APPLICATION_ID = 0x41434F55
"""`ACOU`: what tells our file from any other SQLite database (PRAGMA application_id)."""

MIGRATIONS = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('rebuild', 'files');  -- a new store does not know what recordings there are
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE clock_step (
    seq INTEGER PRIMARY KEY,
    noticed_on INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    boottime REAL NOT NULL,
    step REAL NOT NULL             -- seconds; negative: back
) STRICT;

CREATE TABLE deployment (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    latitude REAL,
    longitude REAL,
    started_on INTEGER NOT NULL,
    ended_on INTEGER
) STRICT;

CREATE TABLE recording (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    deployment INTEGER NOT NULL REFERENCES deployment,
    created_on INTEGER NOT NULL,
    duration REAL NOT NULL,
    samplerate INTEGER NOT NULL,
    audio_channels INTEGER NOT NULL,
    time_expansion REAL NOT NULL,
    boot_id TEXT NOT NULL,
    boottime REAL NOT NULL,
    clock_synced INTEGER NOT NULL,
    corrected_by REAL,             -- seconds that created_on was moved when the clock became right
    capture TEXT NOT NULL,         -- data.Capture as JSON
    size INTEGER NOT NULL,         -- bytes of the file
    state TEXT NOT NULL CHECK (state IN ('recorded', 'kept', 'dropped', 'quarantined', 'missing')),
    path TEXT,                     -- where the file is, or belongs
    moving_from TEXT,              -- where it may still be: the decision is stored first, then the file follows
    reason TEXT,                   -- why it was dropped, quarantined, kept without analysis
    attempts INTEGER NOT NULL DEFAULT 0,
    lease_owner TEXT,              -- the process that works on it
    lease_boot_id TEXT,
    lease_until REAL,              -- boottime before which nobody else tries
    uploaded_on INTEGER            -- every messenger acknowledged its messages, or a person has it
) STRICT;
CREATE INDEX recording_state ON recording (state, created_on, size);
CREATE INDEX recording_moving ON recording (seq) WHERE moving_from IS NOT NULL;
CREATE INDEX recording_unsynced ON recording (boot_id) WHERE clock_synced = 0 AND corrected_by IS NULL;
CREATE INDEX recording_uploaded ON recording (created_on) WHERE state = 'kept' AND uploaded_on IS NOT NULL;

CREATE TABLE model_output (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    recording INTEGER NOT NULL REFERENCES recording ON DELETE CASCADE,
    name_model TEXT NOT NULL,
    created_on INTEGER NOT NULL
) STRICT;
CREATE INDEX model_output_recording ON model_output (recording);
CREATE TABLE detection (
    model_output INTEGER NOT NULL REFERENCES model_output ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    id BLOB NOT NULL,
    prediction_type TEXT NOT NULL,
    score REAL NOT NULL,
    start REAL, low REAL, "end" REAL, high REAL,
    PRIMARY KEY (model_output, ordinal)
) STRICT, WITHOUT ROWID;
CREATE TABLE tag (seq INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (key, value)) STRICT;
CREATE TABLE predicted_tag (
    model_output INTEGER NOT NULL,
    detection INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    tag INTEGER NOT NULL REFERENCES tag,
    confidence REAL NOT NULL,
    PRIMARY KEY (model_output, detection, ordinal),
    FOREIGN KEY (model_output, detection) REFERENCES detection ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE message (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    recording INTEGER REFERENCES recording ON DELETE SET NULL,
    content TEXT NOT NULL,
    created_on INTEGER NOT NULL
) STRICT;
CREATE INDEX message_recording ON message (recording) WHERE recording IS NOT NULL;
CREATE TABLE delivery (
    message INTEGER NOT NULL REFERENCES message ON DELETE CASCADE,
    messenger TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_boot_id TEXT,
    next_at REAL,                  -- boottime before which it is not tried again
    status INTEGER,                -- data.ResponseStatus of the last attempt
    answer TEXT,
    acknowledged_on INTEGER,
    PRIMARY KEY (message, messenger)
) STRICT, WITHOUT ROWID;
CREATE INDEX delivery_waiting ON delivery (messenger, message) WHERE acknowledged_on IS NULL;
CREATE INDEX recording_quarantined_uploaded ON recording (created_on)
    WHERE state = 'quarantined' AND uploaded_on IS NOT NULL;
""",
)
"""One script for each version; `PRAGMA user_version` says how many have been run."""
