package edge

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"plenum/wire/jid"
)

// A Proxy is what HAProxy's own configuration is made of. What changes while it runs (servers, bans, certificates)
// is told to it, and kept in its files for when it starts anew.
type Proxy struct {
	Dir     string   // of its files
	HTTP    string   // host:port; plain: it answers ACME and sends everybody else to HTTPS
	HTTPS   string   // host:port; empty: HTTP serves everything, for laboratories and behind another proxy
	Region  string   // what shards are told of where a socket came in
	Offload string   // host:port of this process, where HAProxy asks for places
	Answer  string   // host:port of this process, which answers ACME's challenges
	Names   []string // of the certificates, with HTTPS; the first is shown to who asks for none of them
	Overlay []string // prefixes of the overlays: who comes from there is believed to be an edge before this one
	Sockets int      // new requests of one address in ten seconds before it is told to come later; 0 is 3,000
	Metrics string   // host:port of HAProxy's own; empty: none
	TURN    string   // name under which HTTPS takes TURN over TLS (RFC 8656), with a certificate of its own; empty: none
	Relay   string   // host:port of the TURN server, by TCP
}

// defaultSockets lets a school of a thousand open its pages within a minute behind one address.
const defaultSockets = 3000

// Options of the servers of shards and bridges. HAProxy gives servers that are added later no defaults, and thus no
// idle connections to use again. A bridge has no weight, so that nobody gets there but by its name.
const (
	shardOptions  = "check inter 2s fastinter 500ms rise 1 fall 2 pool-max-conn 512 pool-purge-delay 5s"
	bridgeOptions = "weight 0 pool-max-conn 64 pool-purge-delay 5s"
)

// maxFolder is how long the path of Dir may be, in bytes: HAProxy binds its socket there under a longer name at first.
const maxFolder = 80

// Files renders the configuration: file names in Dir with their text. HAProxy starts with what the view has, so that
// it is of use before it is told anything.
func (p Proxy) Files(v View, now time.Time) (map[string][]byte, error) {
	if p.Sockets == 0 {
		p.Sockets = defaultSockets
	}
	if len(p.Dir) > maxFolder {
		return nil, fmt.Errorf("folder %s: its path has more than %d bytes, and HAProxy's socket would not fit in", p.Dir, maxFolder)
	}
	for _, o := range p.Overlay {
		if _, err := netip.ParsePrefix(o); err != nil {
			return nil, fmt.Errorf("overlay %s: want a prefix such as 10.77.0.0/16", o)
		}
	}
	if strings.ContainsAny(p.Dir+p.Region, " \t\n\"'\\") {
		return nil, fmt.Errorf("folder %q, region %q: HAProxy takes neither spaces nor quotes there", p.Dir, p.Region)
	}
	for _, n := range p.Names {
		if _, err := jid.New("", n, ""); err != nil || strings.ContainsAny(n, "/ []") {
			return nil, fmt.Errorf("name %s: want a DNS name such as meet.example", n)
		}
	}
	if p.TURN != "" && (p.HTTPS == "" || !slices.Contains(p.Names, p.TURN)) {
		return nil, fmt.Errorf("TURN under %s needs HTTPS and a certificate of that name", p.TURN)
	}
	if p.HTTPS != "" && len(p.Names) == 0 {
		return nil, fmt.Errorf("HTTPS on %s needs the name of a certificate", p.HTTPS)
	}
	files := map[string][]byte{fileNames: []byte(p.Certificates()), fileBans: bans(v.Bans, now), fileFull: []byte("web 1000000000\n")}
	data := struct {
		Proxy
		View
		ShardOptions, BridgeOptions string
	}{p, v, shardOptions, bridgeOptions}
	for name, t := range templates {
		var b bytes.Buffer
		if err := t.Execute(&b, data); err != nil {
			return nil, err
		}
		files[name] = b.Bytes()
	}
	return files, nil
}

// certificate is the file with the chain and the key of a name.
func (p Proxy) certificate(name string) string { return p.Path(name + ".pem") }

// Certificates names each certificate's file, as HAProxy's crt-list has it.
func (p Proxy) Certificates() string {
	var b strings.Builder
	for _, n := range p.Names {
		fmt.Fprintf(&b, "%s %s\n", p.certificate(n), n)
	}
	return b.String()
}

// Path is where one of the files is.
func (p Proxy) Path(name string) string { return filepath.Join(p.Dir, name) }

// Binds are where HAProxy listens for addr: without a host on IPv4, and on IPv6 if this machine has it.
func (p Proxy) Binds(addr string) []string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != "" {
		return []string{addr}
	}
	all := []string{":" + port}
	if l, err := net.Listen("tcp6", "[::]:0"); err == nil {
		l.Close()
		all = append(all, ":::"+port+" v6only")
	}
	return all
}

const (
	fileConfig  = "haproxy.cfg"
	fileOffload = "spoe.cfg"
	fileBans    = "bans"
	fileNames   = "certificates"
	fileFull    = "full" // how many connections are too many
	fileAdmin   = "admin.sock"
)

var templates = map[string]*template.Template{
	fileConfig:  template.Must(template.New(fileConfig).Parse(proxyTemplate)),
	fileOffload: template.Must(template.New(fileOffload).Parse(offloadTemplate)),
}

const proxyTemplate = `# Made by plenum run edge; changed by it alone. Servers, bans and certificates are given at run time.
global
	stats socket {{.Path "admin.sock"}} mode 600 level admin
	stats timeout 10s
	hard-stop-after 6h
	ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
	tune.ssl.default-dh-param 2048
	log stdout format raw local0 notice

defaults
	mode http
	option dontlognull
	option http-keep-alive
	option redispatch
	retries 3
	timeout connect 3s
	timeout client 65s
	timeout server 65s
	timeout http-request 10s
	timeout http-keep-alive 30s
	timeout queue 5s
	timeout tunnel 2h
	timeout client-fin 10s
	timeout server-fin 10s
	http-reuse always

frontend web
{{- range .Binds .HTTP}}
	bind {{.}}{{end}}{{if .HTTPS}}{{range .Binds .HTTPS}}
	bind {{.}} ssl crt-list {{$.Path "certificates"}} alpn h2,http/1.1{{end}}{{end}}
	tcp-request connection reject if { src -f {{.Path "bans"}} }{{if .TURN}}
	mode tcp
	acl relayed ssl_fc_sni -i {{.TURN}}
	tcp-request content set-var(txn.full) str(web),map_str_int({{.Path "full"}})
	tcp-request content reject if relayed { fe_conn,sub(txn.full) gt 0 }
	tcp-request content switch-mode http if !relayed{{end}}
	http-request deny deny_status 403 if { src -f {{.Path "bans"}} }
	http-request set-var(txn.full) str(web),map_str_int({{.Path "full"}})
	http-request return status 503 hdr Retry-After %[rand(20),add(5)] if { fe_conn,sub(txn.full) gt 0 }
	acl trusted src{{range .Overlay}} {{.}}{{else}} 127.255.255.255{{end}}
	acl challenge path_beg /.well-known/acme-challenge/{{if .HTTPS}}
	http-request redirect scheme https code 301 if !{ ssl_fc } !challenge{{end}}
	stick-table type ipv6 size 200k expire 30s store http_req_rate(10s)
	http-request track-sc0 src,ipmask(32,64) unless trusted
	http-request deny deny_status 429 hdr Retry-After %[rand(10),add(10)] if { sc_http_req_rate(0) gt {{.Sockets}} }
	http-request del-header X-Proxy-Region unless trusted
	http-request del-header X-Forwarded-For unless trusted
	http-request del-header X-Forwarded-Proto
	http-request del-header X-Plenum-Handover
	http-request set-header X-Proxy-Region {{.Region}} unless trusted
	http-request set-header X-Forwarded-For %[src] unless trusted
	http-request set-header X-Forwarded-Proto https if { ssl_fc }
	http-response set-header Strict-Transport-Security max-age=31536000 if { ssl_fc }
	filter spoe engine plenum config {{.Path "spoe.cfg"}}
	http-request set-var(txn.path) path
	http-request set-var(txn.query) query
	http-request send-spoe-group plenum places
	http-response send-spoe-group plenum owners if { res.hdr(x-jitsi-shard) -m found }
	http-request set-var(txn.bridge) path,field(3,/) if { path_beg /colibri-ws/ }
	http-request unset-var(txn.full)
	{{- if .TURN}}
	use_backend relay if relayed{{end}}
	use_backend challenges if challenge
	use_backend bridges if { path_beg /colibri-ws/ }
	default_backend shards

backend shards
	balance random
	use-server %[var(txn.plenum.shard)] if { var(txn.plenum.shard) -m found }
	option httpchk GET /about/health
	http-check expect status 200,503{{range .Shards}}
	server {{.Name}} {{.Addr}} {{$.ShardOptions}}{{end}}

backend bridges
	balance random
	use-server %[var(txn.bridge)] if { var(txn.bridge) -m found }{{range .Bridges}}
	server {{.ID}} {{.Addr}} {{$.BridgeOptions}}{{end}}

backend challenges
	server self {{.Answer}}

{{- if .TURN}}

backend relay
	mode tcp
	server self {{.Relay}}
{{- end}}

backend plenum-offload
	mode tcp
	timeout server 1m
	timeout connect 100ms
	option spop-check
	server self {{.Offload}} check inter 500ms
{{if .Metrics}}
frontend metrics
	bind {{.Metrics}}
	http-request use-service prometheus-exporter if { path /metrics }
{{end}}`

const offloadTemplate = `[plenum]
spoe-agent plenum
	groups places owners
	option var-prefix plenum
	option continue-on-error
	timeout hello 200ms
	timeout idle 30s
	timeout processing 100ms
	use-backend plenum-offload

spoe-group places
	messages place

spoe-group owners
	messages learn

spoe-message place
	args path=var(txn.path) query=var(txn.query)

spoe-message learn
	args path=var(txn.path) query=var(txn.query) shard=res.hdr(x-jitsi-shard)
`
