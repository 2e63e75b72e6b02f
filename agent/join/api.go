// Package join is how a host becomes part of a cluster, stays in it, and is put out of it: the join service on the
// server hosts (HTTPS on port 8443) and its client. The service alone talks to Vault, by agent/pki. What a host does
// with the answer (files, units, overlays) is agent's.
package join

import (
	"net/netip"
	"time"
)

// Port is that of the join service, TCP, on the underlay.
const Port = 8443

// Paths of the service. Bodies are JSON, at most 64 KiB, but for binaries.
const (
	PathChallenge = "/v1/challenge" // GET: Challenge
	PathEnrol     = "/v1/enrol"     // POST Request with a token: Answer
	PathRenew     = "/v1/renew"     // POST Request by a host that is known: Answer
	PathLeave     = "/v1/leave"     // POST Request: the host is forgotten
	PathRetire    = "/v1/retire"    // POST Request: Leaving; before PathLeave, until no task is left
	PathReboot    = "/v1/reboot"    // POST Request: Leaving; until no task is left
	PathBack      = "/v1/back"      // POST Request: after the reboot, or instead of it
	PathBinary    = "/v1/binary/"   // GET NAME/ARCH: the file, whose SHA-256 the Answer told
)

// Roles of a host. A host has at least one.
const (
	RoleServer   = "server"
	RoleEdge     = "edge"
	RoleShard    = "shard"
	RoleBridge   = "bridge"
	RoleRecorder = "recorder"
)

// A Challenge is what a Request signs besides itself, so that it cannot be sent again.
type Challenge struct {
	Nonce []byte    `json:"nonce"` // good for one request within a minute
	Time  time.Time `json:"time"`  // the service's clock
	Seen  string    `json:"seen"`  // the address that the service sees this host at
}

// Keys are the public halves of what a host makes for itself and keeps.
type Keys struct {
	Host      []byte `json:"host"`      // Ed25519, 32 bytes: who it is, for as long as it lives
	Nebula    []byte `json:"nebula"`    // X25519, 32 bytes
	WireGuard []byte `json:"wireguard"` // X25519, 32 bytes
	TLS       []byte `json:"tls"`       // Ed25519 or ECDSA in PKIX form: Consul's, Nomad's, Vault's certificates are for it

	// Next is the WireGuard key that the host will change to, once every peer knows it.
	Next []byte `json:"wireguard_next,omitempty"`
}

// Facts are what a host says of itself. They place it in lists and decide nothing about what it may do.
type Facts struct {
	Arch     string           `json:"arch"`               // as Go names it
	Release  string           `json:"release"`            // of plenum
	CPUs     int              `json:"cpus"`               //
	Memory   int64            `json:"memory"`             // bytes
	Uplink   int64            `json:"uplink,omitempty"`   // bit/s, as its donor says; 0 is unknown
	Underlay []netip.AddrPort `json:"underlay,omitempty"` // where its WireGuard listens, hints
	Public   []netip.Addr     `json:"public,omitempty"`   // addresses that clients may use
	NAT      string           `json:"nat,omitempty"`      // as overlay names it
}

// A Request enrols a host, renews what it was given, or takes leave. The Client fills in all but Host, Keys, Facts and
// Fresh. Signature is the host key's over the path and the request's JSON without a Signature.
type Request struct {
	Token     string    `json:"token,omitempty"`  // enrol: Token.Secret
	Region    string    `json:"region,omitempty"` // enrol: what the token's text says, to be compared
	Roles     []string  `json:"roles,omitempty"`  //
	Host      string    `json:"host"`             // its name: a-z, 0-9, inner hyphens, at most 40 bytes
	Keys      Keys      `json:"keys"`
	Facts     Facts     `json:"facts"`
	CSR       []byte    `json:"csr,omitempty"` // certificate request (DER) by which Keys.TLS proves itself
	Nonce     []byte    `json:"nonce"`         // of the Challenge
	Time      time.Time `json:"time"`          // the host's clock
	Signature []byte    `json:"signature,omitempty"`
	Force     bool      `json:"force,omitempty"` // reboot: go down whoever else does
	Fresh     []string  `json:"fresh,omitempty"` // renew: what is to be made anew whatever its age: "tls", "nebula", "consul", "nomad"
}

// An Answer is all that a host needs to be part of the cluster. Secrets in it are this host's alone.
type Answer struct {
	Cluster string   `json:"cluster"` // its name, a DNS label; Consul's datacenter and Nomad's region have it too
	Host    string   `json:"host"`
	Region  string   `json:"region"`
	Roles   []string `json:"roles"`
	Epoch   uint64   `json:"epoch"` // of the host's record

	Control       netip.Prefix `json:"control"` // own address with the length of the plane's prefix
	Media         netip.Prefix `json:"media"`
	Pin           []byte       `json:"pin"`        // SHA-256 of the join services' public key
	Generation    int          `json:"generation"` // of what is to be trusted; grows when CAs change
	RosterKey     []byte       `json:"roster_key"` // Ed25519: who signs records
	Records       [][]byte     `json:"records"`    // signed, of every host there is, this one included
	NebulaCA      string       `json:"nebula_ca"`  // PEM, every CA that is trusted: servers, hosts, break-glass
	NebulaCert    string       `json:"nebula_cert"`
	Blocklist     []string     `json:"blocklist,omitempty"`
	Servers       []Server     `json:"servers"`        // the server hosts, lighthouses all
	TLSCA         string       `json:"tls_ca"`         // PEM
	TLSCert       string       `json:"tls_cert"`       // PEM, for Keys.TLS, names as Consul and Nomad verify them
	Consul        Consul       `json:"consul"`         //
	Nomad         Nomad        `json:"nomad"`          //
	Binaries      []Binary     `json:"binaries"`       // of this cluster's version, for the host's architecture
	RenewAfter    time.Time    `json:"renew_after"`    // a third of the shortest life
	CertificateTo time.Time    `json:"certificate_to"` // end of the Nebula certificate
	Secrets       *Secrets     `json:"secrets,omitempty"`
}

// A Server is one of the server hosts.
type Server struct {
	Host     string     `json:"host"`
	Control  netip.Addr `json:"control"`
	Underlay []string   `json:"underlay"` // host:port of its Nebula, stable
	Join     string     `json:"join"`     // host:port of its join service
}

// Consul is what a host's Consul agent is configured with.
type Consul struct {
	Gossip string `json:"gossip"` // encryption key, base64
	Token  string `json:"token"`  // the agent's: its node, its own service, its own subtree of KV
}

// Nomad is what a host's Nomad agent is configured with.
type Nomad struct {
	Pool         string `json:"pool"`                   // that of the highest role
	Introduction string `json:"introduction,omitempty"` // token with which the client registers for the first time
	ConsulToken  string `json:"consul_token"`           // what Nomad itself uses towards Consul
}

// A Binary is a program that the service hands out.
type Binary struct {
	Name    string `json:"name"` // plenum, consul, nomad, vault
	Version string `json:"version"`
	SHA256  []byte `json:"sha256"`
}

// Secrets are what only a server host gets.
type Secrets struct {
	ConsulToken string `json:"consul_token"` // server agent
	NomadGossip string `json:"nomad_gossip"`
	VaultUnseal string `json:"vault_unseal"` // key share, where the cluster unseals from a file
	VaultToken  string `json:"vault_token"`  // pki.Keys.Credential: what the join service logs in with
}

// A Refusal is what the service answers with a status of 400 or more.
type Refusal struct {
	Reason string `json:"reason"` // one of the Reason constants
	Text   string `json:"text"`   // a sentence that names the fix
}

// Why the service refuses.
const (
	ReasonBad       = "bad-request"
	ReasonUnknown   = "unknown" // a token that is forged or was never made here; a host or an admin that is none
	ReasonExpired   = "token-expired"
	ReasonUsed      = "token-used" // by another host key
	ReasonRevoked   = "revoked"
	ReasonName      = "name-taken"
	ReasonSignature = "bad-signature"
	ReasonClock     = "clock"
	ReasonRegion    = "region"
	ReasonBusy      = "busy"      // another host reboots: try again
	ReasonAddress   = "address"   // callers would not find the host where it says
	ReasonSealed    = "sealed"    // Vault is, so nothing is signed now: try again
	ReasonNoQuorum  = "no-quorum" // Consul has no leader: try again
)
