package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"plenum/agent/host"
	"plenum/agent/join"
	"plenum/overlay"
	"plenum/overlay/roster"
)

// object is a configuration in JSON, as Consul, Nomad and Vault read it.
type object = map[string]any

// view is all that configurations are made of. It is pure: nothing here looks at the machine.
type view struct {
	cfg    Config
	facts  host.Facts
	answer join.Answer
	path   func(string) string // of a file of the host, as its processes find it
	first  bool                // this host made the cluster, so nobody else is there to wait for
}

func (v *view) is(role string) bool { return slices.Contains(v.answer.Roles, role) }

func (v *view) text(o any) []byte {
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		panic("agent: " + err.Error())
	}
	return append(b, '\n')
}

// others are the servers' control addresses but this host's own.
func (v *view) others() []string {
	all := []string{}
	for _, s := range v.answer.Servers {
		if s.Host != v.answer.Host {
			all = append(all, s.Control.String())
		}
	}
	return all
}

// consul is the agent's configuration. Clients and servers differ in little: both verify both ways, so a client cannot
// make itself a server.
func (v *view) consul() []byte {
	a := v.answer
	tokens := object{}
	if a.Consul.Token != "" {
		tokens["agent"] = a.Consul.Token
	}
	o := object{
		"datacenter": a.Cluster, "node_name": a.Host, "data_dir": v.path(stateDir + "/consul"),
		"bind_addr": a.Control.Addr().String(), "client_addr": "127.0.0.1",
		"node_meta":  object{"plenum_region": a.Region},
		"encrypt":    a.Consul.Gossip,
		"retry_join": v.others(), "retry_interval": "1s",
		// A client that leaves when it is told to stop would take its locks with it, at every restart.
		"leave_on_terminate": false, "skip_leave_on_interrupt": true, "rejoin_after_leave": true,
		"acl": object{"enabled": true, "default_policy": "deny", "down_policy": "extend-cache", "tokens": tokens},
		"tls": object{
			"defaults": object{"ca_file": v.path(tlsDir + "/ca.pem"), "cert_file": v.path(tlsDir + "/cert.pem"),
				"key_file": v.path(keyDir + "/tls.key"), "verify_incoming": true, "verify_outgoing": true},
			"internal_rpc": object{"verify_server_hostname": true},
		},
		"ports":                object{"http": 8500, "https": -1, "dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1},
		"connect":              object{"enabled": false},
		"performance":          object{"raft_multiplier": 1},
		"session_ttl_min":      "5s",
		"limits":               object{"http_max_conns_per_client": 1000},
		"telemetry":            object{"prometheus_retention_time": "60s", "disable_hostname": true},
		"disable_update_check": true, "log_level": "INFO",
	}
	if v.is(join.RoleServer) {
		o["server"] = true
		o["client_addr"] = "127.0.0.1 " + a.Control.Addr().String() // shards ask every server whether there is a leader
		// A server that is off stays a member until somebody revokes it: it comes back with all it had. A new one votes
		// soon, for until then the cluster survives no loss.
		o["autopilot"] = object{"cleanup_dead_servers": false, "server_stabilization_time": "2s"}
		if v.first {
			o["bootstrap_expect"] = 1
		}
	}
	return v.text(o)
}

// nomad is the configuration of Nomad: a client everywhere, a server too on server hosts. A client without an
// introduction is left out: on the first host the server has to be there before anybody can introduce it.
func (v *view) nomad() []byte {
	a := v.answer
	control := a.Control.Addr().String()
	o := object{
		"region": a.Cluster, "datacenter": a.Region, "name": a.Host, "data_dir": v.path(stateDir + "/nomad"),
		"bind_addr": control, "addresses": object{"http": "127.0.0.1 " + control},
		"advertise":          object{"http": control, "rpc": control, "serf": control},
		"leave_on_interrupt": false, "leave_on_terminate": false,
		"acl": object{"enabled": true},
		"tls": object{"http": true, "rpc": true, "ca_file": v.path(tlsDir + "/ca.pem"), "cert_file": v.path(tlsDir + "/cert.pem"),
			"key_file": v.path(keyDir + "/tls.key"), "verify_server_hostname": true, "verify_https_client": false},
		"consul": object{"address": consulAddress, "token": a.Nomad.ConsulToken, "auto_advertise": false,
			"server_auto_join": false, "client_auto_join": false,
			"service_identity": object{"aud": []string{"consul.io"}, "ttl": "1h"},
			"task_identity":    object{"aud": []string{"consul.io"}, "ttl": "1h"}},
		"telemetry":            object{"prometheus_metrics": true, "publish_allocation_metrics": true, "publish_node_metrics": true, "disable_hostname": true},
		"disable_update_check": true, "log_level": "INFO",
	}
	servers := make([]string, 0, len(a.Servers))
	for _, s := range a.Servers {
		servers = append(servers, netip.AddrPortFrom(s.Control, 4647).String())
	}
	if v.is(join.RoleServer) {
		server := object{"enabled": true, "raft_multiplier": 1, "heartbeat_grace": "10s",
			"min_heartbeat_ttl":   "4s", // a new node is ready with its first heartbeat, which comes within this
			"client_introduction": object{"enforcement": "strict"},
			"default_scheduler_config": object{"memory_oversubscription_enabled": true, // jobs have a memory_max
				"preemption_config": object{"system_scheduler_enabled": true}},
			"server_join": object{"retry_join": v.others(), "retry_interval": "1s"}}
		if v.first {
			server["bootstrap_expect"] = 1
		}
		if a.Secrets != nil && a.Secrets.NomadGossip != "" {
			server["encrypt"] = a.Secrets.NomadGossip
		}
		o["server"] = server
		o["autopilot"] = object{"cleanup_dead_servers": false, "server_stabilization_time": "2s"}
	}
	if a.Nomad.Introduction != "" {
		meta := object{"plenum_region": a.Region}
		if len(v.cfg.Public) > 0 {
			meta["plenum_public_ip"] = v.cfg.Public[0]
		} else if len(v.facts.Addresses) > 0 {
			meta["plenum_public_ip"] = v.facts.Addresses[0].String()
		}
		client := object{"enabled": true, "servers": servers, "node_pool": a.Nomad.Pool, "meta": meta,
			"network_interface": controlDevice,
			"max_kill_timeout":  "24h", // a drain may take as long as the longest call
			"chroot_env":        v.chroot(),
			"options":           object{"driver.allowlist": "exec", "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean"},
			"template":          object{"wait": object{"min": "200ms", "max": "1s"}},
		}
		if v.facts.CNI != "" {
			client["cni_path"] = v.facts.CNI
		}
		if v.facts.Interface != "" {
			client["host_network"] = []object{{"public": object{"interface": v.facts.Interface}}}
		}
		o["client"] = client
	}
	return v.text(o)
}

const controlDevice, mediaDevice = "plenum-control", "plenum-media"

// chroot is what a task sees of the host: our own static binary, names and certificates, and the programs of role
// packages with the libraries they load.
func (v *view) chroot() object {
	o := object{v.path(binDir): binDir}
	for _, p := range []string{"/etc/passwd", "/etc/group", "/etc/ssl/certs", "/etc/nsswitch.conf"} {
		o[p] = p
	}
	for _, p := range v.facts.Programs {
		o[p] = p
	}
	for file, path := range v.facts.Libraries {
		o[file] = path
	}
	return o
}

// vault is the configuration of Vault: its API on loopback, where the join service is; other servers reach it on the
// control plane alone, with certificates of this cluster both ways.
func (v *view) vault() []byte {
	a := v.answer
	control := a.Control.Addr().String()
	tls := object{"tls_cert_file": v.path(tlsDir + "/cert.pem"), "tls_key_file": v.path(keyDir + "/tls.key")}
	storage := object{"path": v.path(stateDir + "/vault"), "node_id": a.Host, "performance_multiplier": 1}
	var others []object
	for _, s := range v.others() {
		others = append(others, object{"leader_api_addr": "https://" + s + ":8200", "leader_tls_servername": "server." + a.Cluster + ".consul",
			"leader_ca_cert_file": v.path(tlsDir + "/ca.pem"), "leader_client_cert_file": v.path(tlsDir + "/cert.pem"),
			"leader_client_key_file": v.path(keyDir + "/tls.key")})
	}
	if len(others) > 0 {
		storage["retry_join"] = others
	}
	listeners := []object{{"tcp": object{"address": vaultAddress, "tls_disable": true, "cluster_address": control + ":8201"}}}
	if a.TLSCert != "" {
		tls["address"], tls["cluster_address"] = control+":8200", control+":8203"
		tls["tls_require_and_verify_client_cert"], tls["tls_client_ca_file"] = true, v.path(tlsDir+"/ca.pem")
		listeners = append(listeners, object{"tcp": tls})
	}
	return v.text(object{
		"storage": object{"raft": storage}, "listener": listeners,
		"api_addr": "http://" + vaultAddress, "cluster_addr": "https://" + control + ":8201",
		"disable_mlock": true, "log_level": "info", "ui": false,
	})
}

// rules say who may reach what on the control plane. Groups are roles; probes of the overlay always pass.
var rules = []overlay.Rule{
	{From: []string{"any"}, To: []string{"any"}, Proto: "any", Ports: "8301"},                                          // Consul's gossip
	{From: []string{"any"}, To: []string{"server"}, Proto: "tcp", Ports: "8300"},                                       // Consul
	{From: []string{"shard"}, To: []string{"server"}, Proto: "tcp", Ports: "8500"},                                     // is there a leader?
	{From: []string{"any"}, To: []string{"server"}, Proto: "tcp", Ports: "4646-4647"},                                  // Nomad
	{From: []string{"server"}, To: []string{"any"}, Proto: "tcp", Ports: "4646"},                                       // logs of tasks
	{From: []string{"server"}, To: []string{"server"}, Proto: "any", Ports: "any"},                                     // raft, Vault
	{From: []string{"bridge", "shard", "edge", "recorder"}, To: []string{"shard"}, Proto: "tcp", Ports: "20000-32000"}, // XMPP and HTTP under Nomad
	{From: []string{"edge", "shard"}, To: []string{"bridge"}, Proto: "tcp", Ports: "20000-32000"},                      // the bridge channel
	{From: []string{"edge", "server"}, To: []string{"any"}, Proto: "tcp", Ports: "9710-9714"},                          // metrics
	{From: []string{"edge", "server"}, To: []string{"any"}, Proto: "tcp", Ports: "20000-32000"},                        // metrics under Nomad
	{From: []string{"any"}, To: []string{"server"}, Proto: "tcp", Ports: fmt.Sprint(join.Port)},                        // renewal
}

// overlay is the overlay process's configuration.
func (v *view) overlay() []byte {
	a := v.answer
	endpoints := map[string]roster.Endpoints{}
	for _, s := range a.Servers {
		var e roster.Endpoints
		for _, text := range s.Underlay {
			if p, err := netip.ParseAddrPort(text); err == nil {
				e.Control = append(e.Control, p)
				e.Media = append(e.Media, netip.AddrPortFrom(p.Addr(), 51820))
			}
		}
		endpoints[s.Host] = e
	}
	c := overlay.Config{Host: a.Host, Region: a.Region, Roles: a.Roles,
		Control: overlay.PlaneConfig{Backend: "nebula", Device: controlDevice, Prefix: a.Control.Masked(), Address: a.Control.Addr(), Port: 4242, MTU: 1300,
			Nebula: &overlay.Nebula{CA: v.path(nebulaDir + "/ca.crt"), Cert: v.path(nebulaDir + "/host.crt"), Key: v.path(keyDir + "/nebula.key"),
				Blocklist: a.Blocklist}},
		Media: overlay.PlaneConfig{Backend: "wireguard", Device: mediaDevice, Prefix: a.Media.Masked(), Address: a.Media.Addr(), Port: 51820, MTU: 1380,
			KeyFile: v.path(keyDir + "/wireguard.key")},
		Roster:    overlay.RosterConfig{Key: a.RosterKey, File: v.path(seedFile), Consul: consulAddress, Token: v.path(tokenFile)},
		Allow:     rules,
		Endpoints: endpoints,
		Uplink:    uint64(v.cfg.UplinkMbit) * 1_000_000,
	}
	if address, err := netip.ParseAddr(v.cfg.Address); err == nil {
		c.Advertise = []netip.Addr{address}
	}
	return v.text(c)
}

// seed is the roster as the join service knew it: enough to reach the servers, whose Consul knows better.
func (v *view) seed() []byte {
	l := roster.Listing{Hosts: map[string]json.RawMessage{}}
	for _, envelope := range v.answer.Records {
		r, err := roster.Verify(v.answer.RosterKey, envelope)
		if err == nil {
			l.Hosts[r.Host] = envelope
		}
	}
	return v.text(l)
}

// units of a host, in the order in which they start.
func (v *view) units() []host.Unit {
	bin := map[string]string{}
	for _, b := range v.answer.Binaries {
		bin[b.Name] = program(b)
	}
	var root []string
	if v.cfg.root != "/" && v.cfg.root != "" {
		root = []string{"--root", v.cfg.root}
	}
	run := func(part string) []string { return append([]string{bin["plenum"], "run", part}, root...) }
	hardened := []string{"UMask=0077", "NoNewPrivileges=yes", "ProtectHome=yes", "ProtectClock=yes", "ProtectKernelLogs=yes",
		"ProtectKernelModules=yes", "RestrictRealtime=yes", "LockPersonality=yes", "MemoryDenyWriteExecute=yes"}
	api := slices.Concat(hardened, []string{"ProtectSystem=strict", "ReadWritePaths=" + stateDir, "PrivateTmp=yes", "PrivateDevices=yes",
		"CapabilityBoundingSet=", "RestrictNamespaces=yes", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK"})
	all := []host.Unit{{Name: "plenum-overlay", Description: "plenum: the encrypted networks", Exec: run("overlay"),
		Requires: []string{overlayFile},
		Options: slices.Concat(hardened, []string{"CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_ADMIN CAP_DAC_OVERRIDE",
			"DeviceAllow=/dev/net/tun rw", "OOMScoreAdjust=-500", "RuntimeDirectory=plenum", "RuntimeDirectoryPreserve=yes", "KillMode=process"})}}
	if v.is(join.RoleServer) {
		all = append(all, host.Unit{Name: "plenum-vault", Description: "plenum: Vault", Exec: []string{bin["vault"], "server", "-config", v.path(vaultFile)},
			Env: []string{"GOMAXPROCS=2"}, After: []string{"plenum-overlay"}, Options: append(slices.Clone(api), "LimitCORE=0")})
	}
	all = append(all,
		host.Unit{Name: "plenum-consul", Description: "plenum: Consul", Exec: []string{bin["consul"], "agent", "-config-file", v.path(consulFile)},
			After: []string{"plenum-overlay"}, Options: append(slices.Clone(api), "OOMScoreAdjust=-400", "TimeoutStopSec=20")},
		// Tasks inherit what their parent may not do, so nothing is taken from it; and they outlive it.
		host.Unit{Name: "plenum-nomad", Description: "plenum: Nomad", Exec: []string{bin["nomad"], "agent", "-config", v.path(nomadFile)},
			After: []string{"plenum-overlay", "plenum-consul"}, NoFile: 1 << 20,
			Options: []string{"KillMode=process", "KillSignal=SIGINT", "Delegate=yes", "TasksMax=infinity", "OOMScoreAdjust=-400"}},
		host.Unit{Name: "plenum-agent", Description: "plenum: the agent of this host", Exec: run("agent"),
			// It is stopped before those when the machine goes down, and moves tasks away first.
			After: []string{"plenum-overlay", "plenum-consul", "plenum-nomad"}, Options: []string{"KillMode=process", "UMask=0077", "ProtectHome=yes", "OOMScoreAdjust=-300", "TimeoutStopSec=120"}})
	return all
}

// describe is how a person calls a service.
func describe(unit string) string {
	name := strings.TrimPrefix(unit, "plenum-")
	return strings.ToUpper(name[:1]) + name[1:]
}
