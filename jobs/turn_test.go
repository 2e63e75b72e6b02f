//go:build linux

package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/nomad/api"
	"github.com/pion/logging"
	"github.com/pion/stun/v3"
	"github.com/pion/turn/v4"
	"go.uber.org/goleak"

	"plenum/overlay/netlab"
	"plenum/overlay/netlab/stack"
)

// parse reads a job file as Nomad's command line does.
func parse(t *testing.T, file string, vars ...string) *api.Job {
	t.Helper()
	var args []string
	for _, v := range vars {
		args = append(args, "-var", v)
	}
	out, err := exec.Command(stack.Path(t, "jobspec"), append(args, file)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s", file, out)
	}
	var job api.Job
	if err := json.Unmarshal(out, &job); err != nil {
		t.Fatal(err)
	}
	return &job
}

// TestOperatorsJobs parses the jobs that operators submit themselves: every variable says its type and what it is for,
// and nothing is asked for without need.
func TestOperatorsJobs(t *testing.T) {
	for file, vars := range map[string][]string{
		"prometheus.nomad.hcl": {`nodes=["a"]`, `alertmanagers=["10.77.0.9:9093"]`},
		"grafana.nomad.hcl":    {`nodes=["a"]`},
		"turn.nomad.hcl":       {`nodes=["a","b"]`, "region=muc", "realm=meet.example", `overlays=["10.77.0.0/16","fd77::/64"]`},
	} {
		job := parse(t, file, vars...)
		if *job.NodePool != "all" || len(job.Constraints) == 0 || job.Constraints[0].LTarget != "${node.unique.id}" {
			t.Errorf("%s: in pool %s, constraints %v", file, *job.NodePool, job.Constraints)
		}
		for _, g := range job.TaskGroups {
			for _, task := range g.Tasks {
				if want := map[bool]string{true: "turnserver", false: "nobody"}[task.Name == "turn"]; task.Driver != "exec" || task.User != want {
					t.Errorf("%s: %s is run by %s as %q", file, task.Name, task.Driver, task.User)
				}
			}
			for _, s := range g.Services {
				if s.Provider != "consul" || !strings.HasPrefix(s.Name, "plenum-") || s.Meta["region"] == "" || len(s.Checks) == 0 {
					t.Errorf("%s: service %+v", file, s)
				}
			}
		}
		for _, v := range regexp.MustCompile(`(?s)variable "(\w+)" \{\n(.*?)\n\}`).FindAllStringSubmatch(read(t, file), -1) {
			if !strings.Contains(v[2], "type ") || !strings.Contains(v[2], "description") {
				t.Errorf("%s: variable %s has no type or description", file, v[1])
			}
		}
	}
	if text := *parse(t, "prometheus.nomad.hcl", `nodes=["a"]`, `alertmanagers=["10.77.0.9:9093"]`).TaskGroups[0].Tasks[0].Templates[0].EmbeddedTmpl; !strings.Contains(text, "10.77.0.9:9093") {
		t.Errorf("alerts go nowhere: %s", text)
	}
}

func nomadOf(t *testing.T, server *stack.Server) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: server.URL(), HttpClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// nodeOf is the id of the only node.
func nodeOf(t *testing.T, server *stack.Server) string {
	t.Helper()
	nodes, _, err := nomadOf(t, server).Nodes().List(nil)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("nodes %v, %v", nodes, err)
	}
	return nodes[0].ID
}

// run submits a job, and removes it at the end of the test: Nomad's tasks would outlive it.
func run(t *testing.T, server *stack.Server, job *api.Job) {
	t.Helper()
	client := nomadOf(t, server)
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		allocations := func() []*api.AllocationListStub {
			all, _, err := client.Jobs().Allocations(*job.ID, true, nil)
			if err != nil {
				t.Error(err)
			}
			return all
		}
		if t.Failed() {
			for _, a := range allocations() {
				for task, s := range a.TaskStates {
					for _, e := range s.Events {
						t.Logf("%s: %s: %s", task, e.Type, e.DisplayMessage)
					}
				}
			}
		}
		if _, _, err := client.Jobs().Deregister(*job.ID, false, nil); err != nil {
			t.Error(err)
		}
		within(t, 30*time.Second, func() string {
			for _, a := range allocations() {
				if a.ClientStatus == api.AllocClientStatusRunning || a.ClientStatus == api.AllocClientStatusPending {
					return "a task is " + a.ClientStatus
				}
			}
			return ""
		})
	})
}

// servicesOf are the entries of a service that is well.
func servicesOf(catalogue *stack.Server, name string) ([]*consul.ServiceEntry, error) {
	c, err := consul.NewClient(&consul.Config{Address: catalogue.Address, Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		return nil, err
	}
	entries, _, err := c.Health().Service(name, "", true, nil)
	return entries, err
}

// TestTURNJob runs the job on the real Nomad, which renders the secret from its Variable and tells Consul of the server;
// somebody with the secret gets a relay.
func TestTURNJob(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	catalogue := stack.Consul(t)
	server := stack.Nomad(t, catalogue)
	client := nomadOf(t, server)
	const secret = "0123456789abcdef"
	if _, _, err := client.Variables().Create(&api.Variable{Path: "nomad/jobs/turn-muc", Items: api.VariableItems{"secret": secret}}, nil); err != nil {
		t.Fatal(err)
	}
	address := freePort(t)
	job := parse(t, "turn.nomad.hcl", "region=muc", fmt.Sprintf("nodes=[%q]", nodeOf(t, server)), "realm=meet.example", `overlays=["10.77.0.0/16"]`,
		`listen=["127.0.0.1"]`, "port="+portOf(address), "driver=raw_exec", "user=root")
	run(t, server, job)
	within(t, time.Minute, func() string {
		entries, err := servicesOf(catalogue, "plenum-turn")
		if err != nil {
			return err.Error()
		}
		if len(entries) != 1 || entries[0].Service.Meta["region"] != "muc" || entries[0].Service.Meta["port"] != portOf(address) {
			return fmt.Sprintf("in the catalogue: %+v", entries)
		}
		return ""
	})
	user, password, err := turn.GenerateLongTermTURNRESTCredentials(secret, "alice", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := turn.NewClient(&turn.ClientConfig{TURNServerAddr: address, Conn: conn, Username: user, Password: password,
		LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	relay, err := c.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	relay.Close()
}

// TestTURN runs the real coturn with the job's configuration on a host that is on the Internet and on an overlay:
//
//	client ─── wan ─── turn ─── overlay ─── consul
//	bridge ────┘
//
// A client reaches the bridge through it, by UDP, by TCP, and by the edge of the same host, which takes TLS. It reaches neither the overlay, nor the host itself, nor
// what only the host may reach; relays TCP to nobody; and serves nobody without the secret.
func TestTURN(t *testing.T) {
	lab := netlab.New(t)
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	wan := lab.Switch("wan", netip.MustParsePrefix("5.9.0.0/24"), netip.MustParsePrefix("2a01:4f8:1::/64"))
	overlay := lab.Switch("overlay", netip.MustParsePrefix("44.77.0.0/24")) // public, so that only the variable denies it
	client, server, bridge, consul := lab.Host("client"), lab.Host("turn"), lab.Host("bridge"), lab.Host("consul")
	for _, h := range []*netlab.Host{client, server, bridge} {
		lab.Link(h, wan, netlab.LinkConfig{})
	}
	lab.Link(server, overlay, netlab.LinkConfig{})
	lab.Link(consul, overlay, netlab.LinkConfig{})

	const secret = "0123456789abcdef"
	template := *parse(t, "turn.nomad.hcl", "region=muc", `nodes=["a"]`, "realm=meet.example", `overlays=["44.77.0.0/16","fd77::/64"]`,
		`denied=["5.9.0.99/32"]`, "tls=turn.meet.example", fmt.Sprintf(`listen=[%q, %q]`, server.Addrs()[0], server.Addrs()[1])).TaskGroups[0].Tasks[0].Templates[0].EmbeddedTmpl
	dir := t.TempDir()
	config, n := regexp.MustCompile(`\{\{ with nomadVar "nomad/jobs/turn-muc" \}\}(.*)\{\{ \.secret \}\}\{\{ end \}\}`), 0
	text := config.ReplaceAllStringFunc(template, func(s string) string {
		n++
		return config.FindStringSubmatch(s)[1] + secret
	})
	if n != 1 {
		t.Fatalf("the secret is not in the configuration:\n%s", template)
	}
	file := filepath.Join(dir, "turnserver.conf")
	write(t, file, strings.ReplaceAll(text, `{{ env "NOMAD_TASK_DIR" }}`, dir))
	process := server.Start("turnserver", "-c", file)
	address := net.JoinHostPort(server.Addr().String(), "3478")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	within(t, 30*time.Second, func() string {
		c, err := client.Dial(ctx, "tcp", address)
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})

	user, password, err := turn.GenerateLongTermTURNRESTCredentials(secret, "alice", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(network, user, password string) *turn.Client {
		t.Helper()
		var conn net.PacketConn
		switch network {
		case "udp":
			conn, err = client.ListenPacket("udp", ":0")
		case "tls": // as the edge of the same host comes
			var c net.Conn
			if c, err = server.Dial(ctx, "tcp", "127.0.0.1:3479"); err == nil {
				conn = turn.NewSTUNConn(c)
			}
		default:
			var c net.Conn
			if c, err = client.Dial(ctx, "tcp", address); err == nil {
				conn = turn.NewSTUNConn(c)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c, err := turn.NewClient(&turn.ClientConfig{TURNServerAddr: address, STUNServerAddr: address, Conn: conn, Username: user, Password: password,
			LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		if err := c.Listen(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, err := dial("udp", user, "wrong").Allocate(); err == nil {
		t.Error("a wrong password is let in")
	}
	old, oldPassword, err := turn.GenerateLongTermTURNRESTCredentials(secret, "alice", -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial("udp", old, oldPassword).Allocate(); err == nil {
		t.Error("a user whose time is over is let in")
	}
	if c, err := dial("tcp", user, password).AllocateTCP(); err == nil {
		t.Errorf("TCP is relayed from %v", c.Addr())
	}

	listen := func(h *netlab.Host) (net.PacketConn, *net.UDPAddr) {
		t.Helper()
		c, err := h.ListenPacket("udp4", ":10000")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, &net.UDPAddr{IP: h.Addr().AsSlice(), Port: 10000}
	}
	media, peer := listen(bridge)
	inner, inside := listen(consul)
	for _, network := range []string{"udp", "tcp", "tls"} {
		relay, err := dial(network, user, password).Allocate()
		if err != nil {
			t.Fatalf("%s: %v\n%s", network, err, process.Output())
		}
		if a := relay.LocalAddr().(*net.UDPAddr); a.IP.String() != server.Addr().String() || a.Port < 49152 {
			t.Errorf("%s: relayed from %v", network, a)
		}
		if _, err := relay.WriteTo([]byte("hello"), peer); err != nil {
			t.Fatalf("%s: to a bridge: %v", network, err)
		}
		b := make([]byte, 100)
		_ = media.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, from, err := media.ReadFrom(b)
		if err != nil || string(b[:n]) != "hello" || from.String() != relay.LocalAddr().String() {
			t.Fatalf("%s: the bridge has %q from %v, %v", network, b[:n], from, err)
		}
		if _, err := media.WriteTo([]byte("hello, client"), from); err != nil {
			t.Fatal(err)
		}
		_ = relay.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, _, err := relay.ReadFrom(b); err != nil || string(b[:n]) != "hello, client" {
			t.Fatalf("%s: the client has %q, %v", network, b[:n], err)
		}
		for _, address := range []string{inside.IP.String(), "44.77.255.255", "127.0.0.1", "0.0.0.0", "10.0.0.1", "100.64.0.1", "169.254.169.254", "172.31.255.255",
			"192.168.1.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "5.9.0.99"} {
			for _, port := range []int{10000, 8500} {
				if _, err := relay.WriteTo([]byte("evil"), &net.UDPAddr{IP: net.ParseIP(address), Port: port}); err == nil {
					t.Errorf("%s: %s:%s is relayed to", network, address, strconv.Itoa(port))
				} else if !strings.Contains(err.Error(), "403") {
					t.Errorf("%s: to %s: %v, want 403", network, address, err)
				}
			}
		}
		relay.Close()
	}
	conn, err := client.Dial(ctx, "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	six := turnSix{conn: conn, user: user, password: password}
	if code, err := six.ask(t, stun.MethodAllocate, stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}},
		stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{2, 0, 0, 0}}); code != 0 || err != nil {
		t.Fatalf("a relay with an address of IPv6: %d, %v", code, err)
	}
	for address, want := range map[string]stun.ErrorCode{"2a01:4f8:1::3": 0, "2606:4700::1": 0, "fd77::2": 403, "::": 403, "::1": 403, "fe80::1": 403, "fc00::1": 403,
		"64:ff9b::a4d:2": 403, "2002:a4d:2::1": 403, "ff02::1": 403, "2001:db8::1": 403} {
		if code, err := six.ask(t, stun.MethodCreatePermission, peerOf(address)); code != want || err != nil {
			t.Errorf("to %s: %d, %v; want %d", address, code, err, want)
		}
	}
	_ = inner.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, from, err := inner.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes came into the overlay from %v", n, from)
	}
}

// A turnSix asks for what pion's client cannot: relays with an address of IPv6 (RFC 6156).
type turnSix struct {
	conn           net.Conn
	user, password string
	realm          stun.Realm
	nonce          stun.Nonce
}

// ask sends a request, again with the name when that is asked for, and returns the code of an error; 0 is success.
func (s *turnSix) ask(t *testing.T, method stun.Method, attributes ...stun.Setter) (stun.ErrorCode, error) {
	t.Helper()
	for range 5 {
		set := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attributes...)
		if s.realm != nil {
			set = append(set, stun.NewUsername(s.user), s.realm, s.nonce, stun.NewLongTermIntegrity(s.user, string(s.realm), s.password))
		}
		request, err := stun.Build(set...)
		if err != nil {
			return 0, err
		}
		if _, err := s.conn.Write(request.Raw); err != nil {
			return 0, err
		}
		b := make([]byte, 1500)
		_ = s.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, err := s.conn.Read(b)
		if err != nil {
			continue
		}
		answer := &stun.Message{Raw: b[:n]}
		if err := answer.Decode(); err != nil || answer.TransactionID != request.TransactionID {
			continue
		}
		if answer.Type.Class == stun.ClassSuccessResponse {
			return 0, nil
		}
		var code stun.ErrorCodeAttribute
		if err := code.GetFrom(answer); err != nil {
			return 0, err
		}
		if code.Code != stun.CodeUnauthorized && code.Code != stun.CodeStaleNonce || s.realm != nil && code.Code == stun.CodeUnauthorized {
			return code.Code, nil
		}
		if err := errors.Join(s.realm.GetFrom(answer), s.nonce.GetFrom(answer)); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("no answer")
}

// peerOf is a peer's address.
type peerOf string

func (p peerOf) AddTo(m *stun.Message) error {
	return stun.XORMappedAddress{IP: net.ParseIP(string(p)), Port: 10000}.AddToAs(m, stun.AttrXORPeerAddress)
}
