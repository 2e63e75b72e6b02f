# plenum dev --config plenum.hcl

signaling {
  http = "0.0.0.0:8000"
  tls  = true # browsers give camera and microphone to secure pages only

  config_js = {
    startWithAudioMuted = true
    prejoinConfig       = { enabled = false }
  }
}

bridge {
  # Nothing: it takes UDP port 10000, and tells clients all addresses of this machine.
}
