# The edge of a region: HAProxy, and plenum run edge, which feeds it. HAProxy is never reloaded, and carries on while the other
# is away. The edges of a cluster share certificates under the Nomad Variable plenum/edges (secret), for which the job
# needs a policy; plenum edge add makes both.
#
#   nomad job run -var region=muc -var domain=meet.example -var 'nodes=["ID"]' -var 'names=["meet.example"]' edge.nomad.hcl

variable "region" {
  type        = string
  description = "region of the edges, one on each node"
}

variable "nodes" {
  type        = list(string)
  description = "ids of the nodes that have it: those of hosts with the role edge"
}

variable "domain" {
  type        = string
  description = "XMPP domain of the cluster"
}

variable "control" {
  type        = string
  description = "prefix of the control overlay: an edge before this one comes from there"
  default     = "10.86.0.0/16"
}

variable "names" {
  type        = list(string)
  description = "DNS names that the certificates are for, the one for all regions first"
  default     = []
}

variable "http" {
  type        = number
  description = "port of plain HTTP"
  default     = 80
}

variable "https" {
  type        = number
  description = "port of HTTPS; 0: everything is served by plain HTTP, for laboratories and behind another proxy"
  default     = 443
}

variable "acme" {
  type        = string
  description = "directory of the certificate authority; empty: certificates lie on the host"
  default     = "letsencrypt"
}

variable "acme_roots" {
  type        = string
  description = "PEM of the certificates by which the authority proves itself, if it is one of your own; empty: as the host knows it"
  default     = ""
}

variable "turn" {
  type        = string
  description = "name of the region's TURN servers, for clients that come to them by TLS at the port of HTTPS; it gets a certificate; empty: none"
  default     = ""
}

variable "turn_server" {
  type        = string
  description = "address of the host's own TURN server for those (its variable edge)"
  default     = "127.0.0.1:3479"
}

variable "email" {
  type        = string
  description = "address that the authority may write to"
  default     = ""
}

variable "consul" {
  type        = string
  description = "URL of the host's Consul"
  default     = "http://127.0.0.1:8500"
}

variable "plenum" {
  type        = string
  description = "path of the binary on the host; a release has a path of its own"
  default     = "/opt/plenum/bin/plenum"
}

variable "haproxy" {
  type        = string
  description = "path of HAProxy on the host"
  default     = "/usr/sbin/haproxy"
}

variable "dir" {
  type        = string
  description = "folder that both tasks share, its path of at most 80 bytes; empty: one of the allocation"
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
  description = "how long open sockets may go on before a stopped edge ends all the same; less than 24h"
  default     = "6h"
}

variable "cpu" {
  type        = number
  description = "MHz that HAProxy is promised"
  default     = 500
}

variable "memory" {
  type        = number
  description = "MB that HAProxy is promised: 32 and 30 for each thousand sockets"
  default     = 256
}

variable "memory_max" {
  type        = number
  description = "MB that it may take where the host has them to spare"
  default     = 2048
}

locals {
  dir = var.dir == "" ? "${NOMAD_ALLOC_DIR}/edge" : var.dir
}

job "edge" {
  id        = "edge-${var.region}"
  name      = "edge-${var.region}"
  type      = "service"
  node_pool = "all"

  constraint {
    attribute = "${node.unique.id}"
    operator  = "set_contains_any"
    value     = join(",", var.nodes)
  }

  group "edge" {
    count = length(var.nodes)
    constraint {
      distinct_hosts = true
    }
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
    update { # one after the other; Nomad wants the deadline to be longer than a task may take to end
      max_parallel      = 1
      min_healthy_time  = "5s"
      progress_deadline = "24h"
    }

    network {
      port "http" { static = var.http }
      dynamic "port" {
        for_each = var.https == 0 ? [] : [var.https]
        labels   = ["https"]
        content {
          static = port.value
        }
      }
      port "offload" {}
      port "answer" {}
      port "metrics" {}
      port "haproxy" {}
    }

    service {
      name     = "plenum-edge"
      port     = "http"
      provider = "consul"
      tags     = ["region-${var.region}"]
      meta {
        region          = var.region
        alloc_id        = "${NOMAD_ALLOC_ID}"
        control_ip      = "${NOMAD_IP_http}"
        public_ip       = "${meta.plenum_public_ip}"
        metrics_port    = "${NOMAD_PORT_metrics}"
        haproxy_metrics = "${NOMAD_PORT_haproxy}"
      }
      check {
        name     = "alive"
        type     = "tcp"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "edge" {
      driver = var.driver
      user   = var.user
      lifecycle { # HAProxy's configuration comes from it
        hook    = "prestart"
        sidecar = true
      }

      consul {}

      config {
        command = var.plenum
        args = concat([
          "run", "edge", "--config", "${NOMAD_SECRETS_DIR}/plenum.hcl",
          "--region", var.region, "--domain", var.domain, "--dir", local.dir, "--overlay", var.control, "--turn", var.turn, "--turn-server", var.turn_server,
          "--http", ":${var.http}", "--https", var.https == 0 ? "" : ":${var.https}", "--acme", var.acme, "--email", var.email,
          "--offload", "127.0.0.1:${NOMAD_PORT_offload}", "--answer", "127.0.0.1:${NOMAD_PORT_answer}",
          "--metrics", "${NOMAD_ADDR_metrics}", "--haproxy-metrics", "${NOMAD_ADDR_haproxy}",
          "--consul", var.consul, "--state", "${NOMAD_ALLOC_DIR}/data/edge.state", "--log-format", "json", "--log-level", var.log_level,
          ],
        flatten([for n in var.names : ["--name", n]]))
      }

      env = var.acme_roots == "" ? null : { SSL_CERT_FILE = "${NOMAD_TASK_DIR}/roots.pem" }
      dynamic "template" {
        for_each = var.acme_roots == "" ? [] : [var.acme_roots]
        content {
          destination = "${NOMAD_TASK_DIR}/roots.pem"
          change_mode = "noop"
          data        = template.value
        }
      }

      template {
        destination = "${NOMAD_SECRETS_DIR}/plenum.hcl"
        change_mode = "noop"
        perms       = "0400"
        uid         = 65534
        gid         = 65534
        data        = <<-EOT
          edge {
            {{ with nomadVar "plenum/edges" }}secret = "{{ .secret }}"{{ end }}
          }
        EOT
      }

      resources {
        cpu        = 200
        memory     = 128
        memory_max = 512
      }
    }

    task "haproxy" {
      driver       = var.driver
      user         = var.user
      kill_signal  = "SIGUSR1" # no new sockets; the open ones go on
      kill_timeout = var.deadline

      config {
        command = var.haproxy
        args    = ["-f", "${local.dir}/haproxy.cfg"]
        cap_add = var.driver == "exec" ? ["net_bind_service"] : null
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
