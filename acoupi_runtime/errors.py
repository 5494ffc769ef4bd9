"""errors: every way in which the device's program can refuse or fail. Touches nothing.

AcoupiError
├── ConfigurationError        a configuration file is missing, torn or refused by its model
├── ProgramNotFoundError      no such module, class or entry point
├── InvalidProgramError       what was found is not a program
├── DeploymentError           a deployment is already, or not, started
├── DeviceError               the microphone
│   ├── DeviceUnavailableError    it is not there (now)
│   └── DeviceConfigurationError  it is there, and refuses what was asked of it
├── RecordingError            a recording could not be written
├── StoreError                the store refused
├── MessageSendError          a message was not accepted; it will be sent again
└── HealthCheckError          a program's own check said no
"""


class AcoupiError(Exception):
    """The root: its text is one clear line, `where: what is wrong; what to do`."""


class ConfigurationError(AcoupiError):
    """A configuration file is missing, torn, or refused by its model."""


class ProgramNotFoundError(AcoupiError):
    """The named program does not exist here."""


class InvalidProgramError(AcoupiError):
    """The named thing exists, and is not an AcoupiProgram."""


class DeploymentError(AcoupiError):
    """A deployment cannot be started or ended now."""


class DeviceError(AcoupiError):
    """Something is wrong with the microphone."""


class DeviceUnavailableError(DeviceError):
    """The microphone is not there; it is looked for again."""


class DeviceConfigurationError(DeviceError):
    """The microphone is there, and refuses the samplerate or the number of channels."""


class RecordingError(AcoupiError):
    """A recording could not be written."""


class StoreError(AcoupiError):
    """The store refused: an unknown id, a foreign database."""


class MessageSendError(AcoupiError):
    """A message was not accepted by the other side; it stays in the outbox."""


class HealthCheckError(AcoupiError):
    """A program's own check found something wrong."""
