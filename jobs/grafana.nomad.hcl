# Grafana with the dashboards of monitoring/. It is the operator's own program, unpacked below what tasks see of the host.
# It listens on the control overlay alone: reach it by ssh -L, or by an edge's HAProxy with a login of your own before it.
#
#   nomad var put nomad/jobs/grafana password=…
#   nomad job run -var 'nodes=["ID"]' grafana.nomad.hcl

variable "nodes" {
  type        = list(string)
  description = "ids of the nodes that may have it: those of hosts with the role edge"
}

variable "grafana" {
  type        = string
  description = "folder of the unpacked Grafana on the host"
  default     = "/opt/plenum/bin/grafana"
}

variable "guests" {
  type        = bool
  description = "whether everybody on the overlay may look without logging in"
  default     = true
}

variable "cpu" {
  type        = number
  description = "MHz that it is promised"
  default     = 100
}

variable "memory" {
  type        = number
  description = "MB that it is promised"
  default     = 256
}

variable "memory_max" {
  type        = number
  description = "MB that it may take where the host has them to spare"
  default     = 1024
}

job "grafana" {
  id        = "grafana"
  name      = "grafana"
  type      = "service"
  node_pool = "all"

  constraint {
    attribute = "${node.unique.id}"
    operator  = "set_contains_any"
    value     = join(",", var.nodes)
  }

  group "grafana" {
    restart {
      attempts = 10
      interval = "1m"
      delay    = "5s"
      mode     = "delay"
    }
    ephemeral_disk {
      sticky = true
    }

    network {
      port "http" {}
    }

    service {
      name     = "plenum-grafana"
      port     = "http"
      provider = "consul"
      meta {
        region = "${meta.plenum_region}"
      }
      check {
        name     = "alive"
        type     = "http"
        path     = "/api/health"
        interval = "10s"
        timeout  = "2s"
      }
    }

    task "grafana" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "${var.grafana}/bin/grafana"
        args    = ["server", "--homepath", var.grafana]
      }

      env {
        GF_SERVER_HTTP_ADDR            = "${NOMAD_IP_http}"
        GF_SERVER_HTTP_PORT            = "${NOMAD_PORT_http}"
        GF_PATHS_DATA                  = "${NOMAD_ALLOC_DIR}/data"
        GF_PATHS_PROVISIONING          = "${NOMAD_TASK_DIR}/provisioning"
        GF_AUTH_ANONYMOUS_ENABLED      = var.guests
        GF_ANALYTICS_REPORTING_ENABLED = false
        GF_ANALYTICS_CHECK_FOR_UPDATES = false
        GF_USERS_ALLOW_SIGN_UP         = false
        GF_LOG_MODE                    = "console"
      }

      template {
        destination = "${NOMAD_SECRETS_DIR}/env"
        env         = true
        data        = <<-EOT
          {{ with nomadVar "nomad/jobs/grafana" }}GF_SECURITY_ADMIN_PASSWORD={{ .password }}{{ end }}
        EOT
      }
      template {
        destination = "${NOMAD_TASK_DIR}/provisioning/datasources/prometheus.yml"
        change_mode = "restart"
        data        = <<-EOT
          apiVersion: 1
          datasources:
          {{- range service "plenum-prometheus" }}
            - { name: Prometheus, uid: prometheus, type: prometheus, isDefault: true, url: "http://{{ .Address }}:{{ .Port }}" }
          {{- end }}
        EOT
      }
      template {
        destination = "${NOMAD_TASK_DIR}/provisioning/dashboards/plenum.yml"
        data        = <<-EOT
          apiVersion: 1
          providers:
            - { name: plenum, folder: plenum, options: { path: /local/dashboards } }
        EOT
      }
      dynamic "template" {
        for_each = ["cluster", "room", "overlays"]
        content {
          destination     = "${NOMAD_TASK_DIR}/dashboards/${template.value}.json"
          change_mode     = "noop"
          left_delimiter  = "[[["
          right_delimiter = "]]]"
          data            = file("monitoring/${template.value}.json")
        }
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
