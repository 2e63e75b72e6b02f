# A signaling shard: sessions, rooms, conferences. Rooms are owned in Consul, so shards come and go beside each other; a
# release is a new shard, and then a drain of the old one. It reads the Nomad Variables plenum/shards (room_key, resume_key),
# plenum/accounts, and nomad/jobs/turn-REGION if there is one, for which its job needs a policy; plenum shard add makes both.
#
#   nomad job run -var shard=muc-1 -var region=muc -var domain=meet.example -var 'nodes=["ID"]' shard.nomad.hcl

variable "shard" {
  type        = string
  description = "name of the shard, unique in the cluster: a-z, 0-9, inner hyphens"
}

variable "region" {
  type        = string
  description = "region that it serves"
}

variable "near" {
  type        = list(string)
  description = "groups of regions near each other, as \"muc,fra\": bridges there come next"
  default     = []
}

variable "nodes" {
  type        = list(string)
  description = "ids of the nodes that may have it: those of hosts with the role shard; a node's own word for its role is not enough, for it gets secrets"
}

variable "domain" {
  type        = string
  description = "XMPP domain of the cluster"
}

variable "control" {
  type        = string
  description = "prefix of the control overlay: who comes from there is an edge or a shard, and believed"
  default     = "10.86.0.0/16"
}

variable "plenum" {
  type        = string
  description = "path of the binary on the host; a release has a path of its own"
  default     = "/opt/plenum/bin/plenum"
}

variable "consul" {
  type        = string
  description = "URL of the host's Consul"
  default     = "http://127.0.0.1:8500"
}

variable "config_js" {
  type        = string
  description = "JSON laid over what clients read as config.js, as {\"resolution\": 360}; empty: nothing"
  default     = ""
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
  description = "how long a shard may take to give its rooms away before it is stopped all the same; less than 24h"
  default     = "6h"
}

variable "cpu" {
  type        = number
  description = "MHz that it is promised"
  default     = 500
}

variable "memory" {
  type        = number
  description = "MB that it is promised: 40 and 20 for each thousand participants"
  default     = 256
}

variable "memory_max" {
  type        = number
  description = "MB that it may take where the host has them to spare"
  default     = 1024
}

job "shard" {
  id        = "shard-${var.shard}"
  name      = "shard-${var.shard}"
  type      = "service"
  node_pool = "all"

  constraint {
    attribute = "${node.unique.id}"
    operator  = "set_contains_any"
    value     = join(",", var.nodes)
  }
  constraint {
    attribute = "${meta.plenum_region}"
    value     = var.region
  }

  group "shard" {
    # A host that is cut off keeps its rooms as long as its lease says; another shard takes them, not another copy.
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
      port "http" {}
      port "xmpp" {}
      port "metrics" {}
    }

    service {
      name     = "plenum-shard"
      port     = "http"
      provider = "consul"
      tags     = ["region-${var.region}", "shard-${var.shard}"]
      meta {
        shard        = var.shard
        region       = var.region
        alloc_id     = "${NOMAD_ALLOC_ID}"
        control_ip   = "${NOMAD_IP_http}"
        xmpp_port    = "${NOMAD_PORT_xmpp}"
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
      tags     = ["shard-${var.shard}"]
      meta {
        kind   = "shard"
        name   = var.shard
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

    task "shard" {
      driver       = var.driver
      user         = var.user
      kill_signal  = "SIGQUIT" # drain, then end
      kill_timeout = var.deadline

      consul {}

      config {
        command = var.plenum
        args = concat([
          "run", "signaling", "--config", "${NOMAD_SECRETS_DIR}/plenum.hcl",
          "--shard", var.shard, "--region", var.region, "--domain", var.domain,
          "--http", "${NOMAD_ADDR_http}", "--xmpp", "${NOMAD_ADDR_xmpp}", "--metrics", "${NOMAD_ADDR_metrics}",
          "--edge", var.control, "--shards-file", "${NOMAD_TASK_DIR}/shards",
          "--accounts-file", "${NOMAD_SECRETS_DIR}/accounts", "--turn-file", "${NOMAD_SECRETS_DIR}/turn", "--consul", var.consul, "--state", "${NOMAD_ALLOC_DIR}/data/shard.state",
          "--log-format", "json", "--log-level", var.log_level,
          ],
          flatten([for n in var.near : ["--near", n]]),
        var.config_js == "" ? [] : ["--config-js", var.config_js])
      }

      template {
        destination = "${NOMAD_SECRETS_DIR}/plenum.hcl"
        change_mode = "noop"
        perms       = "0400"
        uid         = 65534
        gid         = 65534
        data        = <<-EOT
          signaling {
            {{ with nomadVar "plenum/shards" }}
            room_key   = "{{ .room_key }}"
            resume_key = "{{ .resume_key }}"
            {{ end }}
            consul_servers = [{{ range service "consul|any" }}"http://{{ .Address }}:8500", {{ end }}]
          }
        EOT
      }
      template {
        destination = "${NOMAD_SECRETS_DIR}/accounts"
        change_mode = "noop" # plenum looks; for a signal that finds no task Nomad would end the allocation
        perms       = "0400"
        uid         = 65534
        gid         = 65534
        data        = <<-EOT
          {{ with nomadVar "plenum/accounts" }}{{ range .Tuples }}{{ .K }} {{ .V }}
          {{ end }}{{ end }}
        EOT
      }
      template {
        destination = "${NOMAD_SECRETS_DIR}/turn"
        change_mode = "noop" # plenum looks; for a signal that finds no task Nomad would end the allocation
        perms       = "0400"
        uid         = 65534
        gid         = 65534
        data        = <<-EOT
          {{ if nomadVarExists "nomad/jobs/turn-${var.region}" }}{{ with nomadVar "nomad/jobs/turn-${var.region}" }}{{ $secret := .secret }}
          {{ range service "region-${var.region}.plenum-turn|any" }}{{ or .ServiceMeta.public_ip .Address }} {{ .Port }} {{ $secret }}
          {{ with .ServiceMeta.tls }}{{ . }} 443 {{ $secret }} tls{{ end }}
          {{ end }}{{ end }}{{ end }}
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
