"""What a picture says of itself, and how it is asked.

policy         which marks pictures carry, from the settings
facts          what a spec does not say of its picture: when, by which weights, from what
marks          spec -> XMP elements: source type, AI system, China's AIGC label
manifest       spec -> C2PA manifest
certificates   X.509: a development authority and certificate, and what a chain must be
credentials    the certificate and key in SAFELIGHT_HOME/trust
bounded        work of others, for a time
signer         one signer a process: with the key, or through a callback
sign           encoded picture + manifest -> signed picture, the last change to its bytes
ingredients    pictures that were sent -> what is kept of them for later manifests
verify         a file -> the marks it carries, and what each says

entry          what the ledger says of a picture; its digests and hashes
chain_keys     keys of the ledger's chain
tables         the ledger's tables
ledger         append, find, erase, checkpoint
pending        entries that wait for the database
verify_chain   whether the ledger is what was written
export         the ledger as JSON lines
statements     signed JSON: checkpoints, reports
fingerprint    whether a picture is the one that the ledger knows

examination    all layers of a file as one answer
examiner       asks all detectors of this installation
origins        what pictures that were sent said of themselves

watermark      the watermark: keys, embedding, detection

    pixels -> watermark -> encode with marks -> sign -> sha256
"""
