# The media bridge of one host. A job for each, so that a chosen one can be parked; it serves every shard of the cluster. Its
# account is in the Nomad Variable nomad/jobs/bridge-HOST, which plenum join makes.
#
#   nomad job run -var host=h2 -var node=ID -var region=muc -var domain=meet.example bridge.nomad.hcl

variable "host" {
  type        = string
  description = "name of the host, as it joined"
}

variable "node" {
  type        = string
  description = "id of the host's node, as the cluster recorded it"
}

variable "region" {
  type        = string
  description = "region of the host"
}

variable "domain" {
  type        = string
  description = "XMPP domain of the cluster"
}

variable "advertise" {
  type        = list(string)
  description = "public addresses (ADDRESS or ADDRESS:PORT) by which clients reach the media port of a host behind NAT"
  default     = []
}

variable "uplink" {
  type        = number
  description = "Mbit/s that the host's donor lets it send; 0: what the card carries"
  default     = 0
}

variable "ws_url" {
  type        = string
  description = "where clients reach the edges, as wss://meet.example, for the bridge channel by WebSocket; empty: by data channel only"
  default     = ""
}

variable "media_port" {
  type        = number
  description = "UDP port of media"
  default     = 10000
}

variable "plenum" {
  type        = string
  description = "path of the binary on the host; a release has a path of its own"
  default     = "/opt/plenum/bin/plenum"
}

variable "log_level" {
  type        = string
  description = "debug, info, warn or error"
  default     = "warn"
}

variable "driver" {
  type        = string
  description = "driver of the tasks; raw_exec is for laboratories"
  default     = "exec"
}

variable "user" {
  type        = string
  description = "whom the tasks run as"
  default     = "nobody"
}

variable "deadline" {
  type        = string
  description = "how long calls may go on before a stopped bridge ends all the same; less than 24h"
  default     = "6h"
}

variable "cpu" {
  type        = number
  description = "MHz that it is promised"
  default     = 1000
}

variable "memory" {
  type        = number
  description = "MB that it is promised"
  default     = 256
}

variable "memory_max" {
  type        = number
  description = "MB that it may take where the host has them to spare"
  default     = 2048
}

job "bridge" {
  id        = "bridge-${var.host}"
  name      = "bridge-${var.host}"
  type      = "service"
  node_pool = "all"

  constraint {
    attribute = "${node.unique.id}"
    value     = var.node
  }

  group "bridge" {
    # A host that is cut off goes on with its calls; nothing is placed anew because it was lost.
    disconnect {
      lost_after = "12h"
      replace    = false
      reconcile  = "keep_original"
    }
    restart {
      attempts = 10
      interval = "1m"
      delay    = "1s"
      mode     = "delay"
    }
    reschedule {
      unlimited      = true
      delay          = "5s"
      delay_function = "exponential"
      max_delay      = "2m"
    }

    update { # Nomad wants the deadline to be longer than a task may take to end
      min_healthy_time  = "1s"
      progress_deadline = "24h"
    }

    network {
      port "media" { static = var.media_port }
      port "http" {}
      port "ws" {}
      port "metrics" {}
    }

    service {
      name     = "plenum-bridge"
      port     = "http"
      provider = "consul"
      tags     = ["region-${var.region}"]
      meta {
        region       = var.region
        relay_id     = var.host
        alloc_id     = "${NOMAD_ALLOC_ID}"
        control_ip   = "${NOMAD_IP_http}"
        media_port   = "${var.media_port}"
        ws_port      = "${NOMAD_PORT_ws}"
        metrics_port = "${NOMAD_PORT_metrics}"
      }
      check {
        name     = "alive"
        type     = "http"
        path     = "/about/health"
        interval = "5s"
        timeout  = "2s"
      }
    }

    # Whether people are heard, beside whether it is alive: a service of its own, for an edge goes by what is alive.
    service {
      name     = "plenum-probe"
      provider = "consul"
      port     = "http"
      tags     = ["bridge-${var.host}"]
      meta {
        kind   = "bridge"
        name   = var.host
        region = var.region
      }
      check {
        name     = "heard"
        type     = "http" # no script: after a restart of Nomad its executor dies of one, and the task with it
        port     = "metrics"
        path     = "/about/heard"
        interval = "30s"
        timeout  = "10s"
      }
    }

    task "bridge" {
      driver       = var.driver
      user         = var.user
      kill_signal  = "SIGQUIT" # drain, then end
      kill_timeout = var.deadline

      consul {} # the list of shards comes from its catalogue

      config {
        command = var.plenum
        args = concat([
          "run", "bridge", "--config", "${NOMAD_SECRETS_DIR}/plenum.hcl",
          "--relay-id", var.host, "--region", var.region, "--domain", var.domain,
          "--media", ":${var.media_port}", "--bridge-http", "${NOMAD_ADDR_http}",
          "--metrics", "${NOMAD_ADDR_metrics}", "--shards-file", "${NOMAD_TASK_DIR}/shards", "--log-format", "json", "--log-level", var.log_level,
          ],
          flatten([for a in var.advertise : ["--advertise", a]]),
          var.ws_url == "" ? [] : ["--bridge-ws", "${NOMAD_ADDR_ws}", "--bridge-ws-url", var.ws_url],
        var.uplink == 0 ? [] : ["--uplink", "${var.uplink}"])
      }

      template {
        destination = "${NOMAD_SECRETS_DIR}/plenum.hcl"
        change_mode = "noop"
        perms       = "0400"
        uid         = 65534
        gid         = 65534
        data        = <<-EOT
          bridge {
            {{ with nomadVar "nomad/jobs/bridge-${var.host}" }}account = "{{ .xmpp_user }}:{{ .xmpp_password }}"{{ end }}
          }
        EOT
      }
      template {
        destination = "${NOMAD_TASK_DIR}/shards"
        change_mode = "noop" # plenum looks; for a signal that finds no task Nomad would end the allocation
        data        = <<-EOT
          {{/* the well ones first: an allocation that was replaced may stay in the catalogue */}}
          {{ range service "plenum-shard" }}{{ .ServiceMeta.shard }} {{ .ServiceMeta.region }} {{ .Address }}:{{ .Port }} {{ .Address }}:{{ .ServiceMeta.xmpp_port }}
          {{ end }}
          {{ range service "plenum-shard|any" }}{{ .ServiceMeta.shard }} {{ .ServiceMeta.region }} {{ .Address }}:{{ .Port }} {{ .Address }}:{{ .ServiceMeta.xmpp_port }}
          {{ end }}
        EOT
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
