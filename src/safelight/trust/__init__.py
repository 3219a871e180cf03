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

    pixels -> watermark -> encode with marks -> sign -> sha256
"""
