# Prometheus, for the whole cluster: it finds everything in Consul, and its alerts come with it from monitoring/. It is the
# operator's own program, of a version with Consul in it (Debian's has none); see monitoring/README.md.
#
#   nomad job run -var 'nodes=["ID"]' prometheus.nomad.hcl

variable "nodes" {
  type        = list(string)
  description = "ids of the nodes that may have it: those of hosts with the role edge, which may read everybody's metrics"
}

variable "prometheus" {
  type        = string
  description = "path of Prometheus on the host, below what tasks see of it"
  default     = "/opt/plenum/bin/prometheus"
}

variable "consul" {
  type        = string
  description = "URL of the host's Consul"
  default     = "http://127.0.0.1:8500"
}

variable "retention" {
  type        = string
  description = "how long samples are kept; about 1 GB for each 10 hosts and month"
  default     = "30d"
}

variable "alertmanagers" {
  type        = list(string)
  description = "ADDRESS:PORT of Alertmanagers that alerts go to; none: they are shown, and nobody is woken"
  default     = []
}

variable "disk" {
  type        = number
  description = "MB of samples that it may keep"
  default     = 10240
}

variable "driver" {
  type        = string
  description = "driver of the task; raw_exec is for laboratories"
  default     = "exec"
}

variable "user" {
  type        = string
  description = "whom the task runs as"
  default     = "nobody"
}

variable "cpu" {
  type        = number
  description = "MHz that it is promised"
  default     = 200
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

job "prometheus" {
  id        = "prometheus"
  name      = "prometheus"
  type      = "service"
  node_pool = "all"

  constraint {
    attribute = "${node.unique.id}"
    operator  = "set_contains_any"
    value     = join(",", var.nodes)
  }

  group "prometheus" {
    restart {
      attempts = 10
      interval = "1m"
      delay    = "5s"
      mode     = "delay"
    }
    ephemeral_disk {
      size   = var.disk
      sticky = true # samples are kept where the next one is on the same host
    }

    network {
      port "http" {}
    }

    service {
      name     = "plenum-prometheus"
      port     = "http"
      provider = "consul"
      meta {
        region       = "${meta.plenum_region}"
        metrics_port = "${NOMAD_PORT_http}"
      }
      check {
        name     = "alive"
        type     = "http"
        path     = "/-/healthy"
        interval = "10s"
        timeout  = "2s"
      }
    }

    task "prometheus" {
      driver       = var.driver
      user         = var.user
      kill_timeout = "1m" # it writes what it has in memory

      identity {
        name        = "consul_default"
        aud         = ["consul.io"]
        ttl         = "1h"
        change_mode = "noop"
      }
      consul {}

      config {
        command = var.prometheus
        args = [
          "--config.file=${NOMAD_TASK_DIR}/prometheus.yml", "--web.listen-address=${NOMAD_ADDR_http}",
          "--storage.tsdb.path=${NOMAD_ALLOC_DIR}/data", "--storage.tsdb.retention.time=${var.retention}",
          "--storage.tsdb.retention.size=${floor(var.disk * 9 / 10)}MB", "--log.format=json",
        ]
      }

      template {
        destination     = "${NOMAD_TASK_DIR}/prometheus.yml"
        change_mode     = "noop" # nothing in it changes but with the job
        left_delimiter  = "[[["
        right_delimiter = "]]]"
        data = join("", concat([replace(file("monitoring/prometheus.yml"), "127.0.0.1:8500", trimprefix(var.consul, "http://"))], length(var.alertmanagers) == 0 ? [] :
        ["\nalerting: { alertmanagers: [{ static_configs: [{ targets: ${jsonencode(var.alertmanagers)} }] }] }\n"]))
      }
      template {
        destination     = "${NOMAD_TASK_DIR}/rules.yml"
        change_mode     = "noop" # nothing in it changes but with the job
        left_delimiter  = "[[["
        right_delimiter = "]]]"
        data            = file("monitoring/rules.yml")
      }

      template { # the file that Nomad makes of it is root's
        destination = "${NOMAD_SECRETS_DIR}/consul"
        change_mode = "noop"
        perms       = "0400"
        uid         = 65534
        gid         = 65534
        data        = "{{ env \"CONSUL_TOKEN\" }}"
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
