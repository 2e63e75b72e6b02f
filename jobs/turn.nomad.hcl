# TURN for a region: coturn, for people whose network lets nothing through but TCP, or no UDP to port 10000. It stands on a
# host of the overlays, so it relays to none of them: no overlay, no private, loopback or link-local peer, and no TCP. The host's
# guard drops what its user would open there all the same.
# Users are made from a secret of the region; whoever has one may relay until it ends, a day at most.
#
#   nomad var put nomad/jobs/turn-muc secret=$(openssl rand -hex 32)
#   nomad job run -var region=muc -var 'nodes=["ID"]' -var realm=meet.example turn.nomad.hcl

variable "region" {
  type        = string
  description = "region of the servers, one on each node"
}

variable "nodes" {
  type        = list(string)
  description = "ids of the nodes that have it: those of hosts with the role edge"
}

variable "realm" {
  type        = string
  description = "name of the service, as people see it"
}

variable "overlays" {
  type        = list(string)
  description = "prefixes of the control and the media overlay, to which nothing is relayed"
  default     = ["10.86.0.0/16", "10.87.0.0/16"]
}

variable "denied" {
  type        = list(string)
  description = "more prefixes to which nothing is relayed: public addresses of machines that trust this one"
  default     = []
}

variable "listen" {
  type        = list(string)
  description = "addresses to listen on and relay from: the host's own public ones, or those that its NAT maps; none: all but loopback and the overlays, found by coturn"
  default     = []
}

variable "public" {
  type        = string
  description = "public address of a host behind NAT; empty: as the host says itself"
  default     = ""
}

variable "port" {
  type        = number
  description = "UDP and TCP port that clients come to"
  default     = 3478
}

variable "tls" {
  type        = string
  description = "name under which the region's edges take TLS for these servers at 443 (their variable turn), for networks that let nothing else through; empty: none"
  default     = ""
}

variable "edge" {
  type        = number
  description = "port on loopback for the host's own edge, which hands over who came by TLS"
  default     = 3479
}

variable "relay" {
  type        = list(number)
  description = "first and last UDP port of relays"
  default     = [49152, 65535]
}

variable "mbit" {
  type        = number
  description = "Mbit/s that all relays together may carry each way; 0: no limit"
  default     = 0
}

variable "turnserver" {
  type        = string
  description = "path of coturn on the host"
  default     = "/usr/bin/turnserver"
}

variable "driver" {
  type        = string
  description = "driver of the task; raw_exec is for laboratories"
  default     = "exec"
}

variable "user" {
  type        = string
  description = "whom the task runs as: the user of coturn's package, whom the host's own rules keep out of the overlays"
  default     = "turnserver"
}

variable "cpu" {
  type        = number
  description = "MHz that it is promised"
  default     = 200
}

variable "memory" {
  type        = number
  description = "MB that it is promised"
  default     = 128
}

variable "memory_max" {
  type        = number
  description = "MB that it may take where the host has them to spare"
  default     = 512
}

locals {
  # Not for the public by RFC 6890: this network, private, shared, loopback, link-local, benchmarks, documentation,
  # multicast, reserved; the same in IPv6, with what carries IPv4 in it (mapped, NAT64, 6to4, Teredo). Not ::, which coturn
  # denies by itself: in its ranges it stands for any address.
  unreachable = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
    "::1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32",
    "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8",
  ]
}

job "turn" {
  id        = "turn-${var.region}"
  name      = "turn-${var.region}"
  type      = "service"
  node_pool = "all"

  constraint {
    attribute = "${node.unique.id}"
    operator  = "set_contains_any"
    value     = join(",", var.nodes)
  }

  group "turn" {
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
    update {
      max_parallel     = 1
      min_healthy_time = "5s"
    }

    network {
      port "turn" { static = var.port }
    }

    service {
      name     = "plenum-turn"
      port     = "turn"
      provider = "consul"
      tags     = ["region-${var.region}"]
      meta {
        region    = var.region
        alloc_id  = "${NOMAD_ALLOC_ID}"
        public_ip = "${meta.plenum_public_ip}"
        port      = var.port
        tls       = var.tls
      }
      check {
        name     = "alive"
        type     = "tcp"
        interval = "10s"
        timeout  = "2s"
      }
    }

    task "turn" {
      driver = var.driver
      user   = var.user

      config {
        command = var.turnserver
        args    = ["-c", "${NOMAD_SECRETS_DIR}/turnserver.conf"]
        cap_add = var.driver == "exec" ? ["net_bind_service"] : null
      }

      # Denied peers are ranges, as coturn's files have it: the first and the last address.
      template {
        destination = "${NOMAD_SECRETS_DIR}/turnserver.conf"
        change_mode = "restart" # relays end; clients come back by themselves
        perms       = "0444"    # of a user whose number is each host's own; only this task sees the folder
        data = join("\n", concat([
          "use-auth-secret",
          "{{ with nomadVar \"nomad/jobs/turn-${var.region}\" }}static-auth-secret={{ .secret }}{{ end }}",
          "realm=${var.realm}",
          "listening-port=${var.port}",
          "min-port=${var.relay[0]}",
          "max-port=${var.relay[1]}",
          "max-allocate-lifetime=7200",
          "user-quota=12",
          "total-quota=2000",
          "stale-nonce=600",
          "fingerprint",
          "no-tcp-relay",
          "no-multicast-peers",
          "no-tls",
          "no-dtls",
          "no-cli",
          "no-rfc5780",
          "no-stun-backward-compatibility",
          "response-origin-only-with-rfc5780",
          "no-software-attribute",
          "log-file=stdout",
          "simple-log",
          "pidfile={{ env \"NOMAD_TASK_DIR\" }}/turnserver.pid",
          "userdb={{ env \"NOMAD_TASK_DIR\" }}/turndb",
          ],
          [for a in var.listen : "listening-ip=${a}"],
          [for a in var.listen : "relay-ip=${a}"],
          var.tls == "" ? [] : ["aux-server=127.0.0.1:${var.edge}"], # its proxy port would take the place of all others
          var.public == "" ? [] : ["external-ip=${var.public}"],
          var.mbit == 0 ? [] : ["bps-capacity=${var.mbit * 125000}"],
          [for p in concat(var.overlays, var.denied, local.unreachable) :
          "denied-peer-ip=${cidrhost(p, 0)}-${cidrhost(p, -1)}"],
          ["denied-peer-ip=::ffff:0.0.0.0-::ffff:255.255.255.255"], # IPv4 in IPv6's clothes
        [""]))
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
