//go:build linux

package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"plenum/overlay/netlab/stack"
)

// TestAlerts runs promtool's tests of the rules, and then shows for each alert that they would notice if it never fired,
// and if it always did.
func TestAlerts(t *testing.T) {
	promtool := stack.Path(t, "promtool")
	rules, tests := read(t, "monitoring/rules.yml"), read(t, "monitoring/rules_test.yml")
	dir := t.TempDir()
	try := func(rules string) error {
		write(t, filepath.Join(dir, "rules.yml"), rules)
		write(t, filepath.Join(dir, "rules_test.yml"), tests)
		out, err := exec.Command(promtool, "test", "rules", filepath.Join(dir, "rules_test.yml")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := try(rules); err != nil {
		t.Fatal(err)
	}
	all := alerts(t, rules)
	if len(all) < 10 {
		t.Fatalf("only %d alerts were found", len(all))
	}
	for how, spoil := range map[string]func(expr string) string{
		"never":  func(string) string { return "vector(0) > 1" },
		"always": func(expr string) string { return expr + " or vector(1)" },
		"loose":  loosen,
	} {
		var text yaml.Node
		if err := yaml.Unmarshal([]byte(rules), &text); err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			set(&text, a.Alert, spoil(a.Expr))
		}
		spoiled, err := yaml.Marshal(&text)
		if err != nil {
			t.Fatal(err)
		}
		err = try(string(spoiled))
		for _, a := range all {
			if err == nil || !strings.Contains(err.Error(), "alertname: "+a.Alert+",") {
				t.Errorf("%s: the tests do not notice that %s is %s", how, a.Alert, spoil(a.Expr))
			}
		}
	}
}

// loosen takes the last condition away from an expression, or the limit of its only one.
func loosen(expr string) string {
	conditions := regexp.MustCompile(`\s(and|unless) on \(`).FindAllStringIndex(expr, -1)
	for _, at := range slices.Backward(conditions) {
		if rest := expr[at[0]:]; strings.Count(rest, "(") == strings.Count(rest, ")") {
			return expr[:at[0]]
		}
	}
	return regexp.MustCompile(`(>=|<|==|>) [0-9.]+( \* 86400)?( / 3)?( or .*)?$`).ReplaceAllStringFunc(expr, func(s string) string {
		if s[0] == '<' {
			return "< 1e15"
		}
		return ">= 0"
	})
}

type alert struct{ Alert, Expr string }

func alerts(t *testing.T, rules string) (all []alert) {
	var file struct{ Groups []struct{ Rules []alert } }
	if err := yaml.Unmarshal([]byte(rules), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// set gives an alert another expression.
func set(n *yaml.Node, alert, expr string) {
	for i, c := range n.Content {
		if c.Value == "alert" && n.Content[i+1].Value == alert {
			for j, c := range n.Content {
				if c.Value == "expr" {
					n.Content[j+1].Value = expr
				}
			}
		}
		set(c, alert, expr)
	}
}

// A dashboard is what we look at of Grafana's.
type dashboard struct {
	UID, Title, Description string
	Templating              struct {
		List []struct {
			Name, Type string
			Definition string
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               struct{ Type, UID string }
		GridPos                  struct{ X, Y, W, H int }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		Targets                  []struct{ RefID, Expr string }
	}
}

func dashboards(t *testing.T) map[string]dashboard {
	paths, err := filepath.Glob("monitoring/*.json")
	if err != nil || len(paths) < 3 {
		t.Fatalf("%v, %v", paths, err)
	}
	all := map[string]dashboard{}
	for _, p := range paths {
		var d dashboard
		if err := json.Unmarshal([]byte(read(t, p)), &d); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		all[p] = d
	}
	return all
}

var variable = regexp.MustCompile(`\$\{?([a-z_]+)\}?`)

// TestDashboards looks for what makes a dashboard useless somewhere else: a data source of ours, ids that are there
// twice, variables that nobody declared, panels that lie on each other or say nothing about themselves.
func TestDashboards(t *testing.T) {
	uids := map[string]string{}
	for path, d := range dashboards(t) {
		complain := func(format string, args ...any) {
			t.Helper()
			t.Errorf("%s: "+format, append([]any{path}, args...)...)
		}
		if d.UID == "" || uids[d.UID] != "" {
			complain("uid %q, which %q has", d.UID, uids[d.UID])
		}
		uids[d.UID] = path
		known := map[string]bool{"__rate_interval": true}
		for _, v := range d.Templating.List {
			known[v.Name] = true
		}
		if !known["datasource"] || d.Title == "" || d.Description == "" {
			complain("no variable datasource, title or description")
		}
		ids, taken := map[int]bool{}, map[[2]int]string{}
		for _, p := range d.Panels {
			if p.ID == 0 || ids[p.ID] {
				complain("panel %s: id %d is there twice", p.Title, p.ID)
			}
			ids[p.ID] = true
			if p.Title == "" || p.Description == "" {
				complain("panel %d: no title or description", p.ID)
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if at := [2]int{x, y}; x >= 24 || taken[at] != "" {
						complain("panel %s lies on %q or beside the page", p.Title, taken[at])
					} else {
						taken[at] = p.Title
					}
				}
			}
			if p.Type == "row" {
				continue
			}
			if p.Datasource.UID != "${datasource}" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
				complain("panel %s: data source %q, unit %q, %d queries", p.Title, p.Datasource.UID, p.FieldConfig.Defaults.Unit, len(p.Targets))
			}
			refs := map[string]bool{}
			for _, q := range p.Targets {
				if q.RefID == "" || refs[q.RefID] {
					complain("panel %s: query %q is there twice", p.Title, q.RefID)
				}
				refs[q.RefID] = true
				for _, v := range variable.FindAllStringSubmatch(q.Expr, -1) {
					if !known[v[1]] {
						complain("panel %s: nobody declares $%s", p.Title, v[1])
					}
				}
			}
		}
	}
}

// TestPrometheus has the real Prometheus, with the configuration of the job, find the real processes in the real
// Consul: every target is up and labelled, every rule is evaluated, and every query of the dashboards is answered and
// asks for names that are there; most find something. The agent and the overlays, which would need a host of their own, are stood in for.
func TestPrometheus(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	catalogue := stack.Consul(t)
	nomad := stack.Nomad(t, nil)
	host, err := os.Hostname() // what Consul calls its node
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	build(t, dir)

	beside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.ReplaceAll(hostMetrics, "h2", host))
	}))
	t.Cleanup(beside.Close)
	shards := filepath.Join(dir, "shards")
	write(t, shards, "")
	shard := startPlenum(t, dir, "shard", "run", "signaling", "--shard", "muc-1", "--region", "muc", "--shards-file", shards, "--http", "127.0.0.1:0",
		"--xmpp", "127.0.0.1:0", "--consul", catalogue.URL(), "--room-key", "secret", "--account", "h1:secret")
	write(t, shards, fmt.Sprintf("muc-1 muc %s %s\n", hostOf(shard.HTTP), shard.XMPP))
	bridge := startPlenum(t, dir, "bridge", "run", "bridge", "--relay-id", "h1", "--region", "muc", "--shards-file", shards, "--account", "h1:secret",
		"--media", "127.0.0.1:0", "--bridge-http", "127.0.0.1:0")
	proxy := freePort(t)
	edge := startPlenum(t, dir, "edge", "run", "edge", "--region", "muc", "--dir", filepath.Join(dir, "haproxy"), "--http", freePort(t), "--https", "",
		"--offload", freePort(t), "--answer", freePort(t), "--haproxy-metrics", proxy, "--consul", catalogue.URL())
	start(t, "haproxy", exec.Command("haproxy", "-db", "-f", filepath.Join(dir, "haproxy", "haproxy.cfg")))

	own := freePort(t)
	client, err := consul.NewClient(&consul.Config{Address: catalogue.Address, Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	register := func(name, port, metrics string, meta map[string]string) {
		t.Helper()
		meta["region"] = "muc"
		meta["metrics_port"] = portOf(metrics)
		var n int
		fmt.Sscan(portOf(port), &n)
		if err := client.Agent().ServiceRegister(&consul.AgentServiceRegistration{Name: name, Address: "127.0.0.1", Port: n, Meta: meta}); err != nil {
			t.Fatal(err)
		}
	}
	register("plenum-agent-h1", beside.URL, beside.URL, map[string]string{"roles": "server,edge"})
	register("plenum-shard", shard.HTTP, shard.Metrics, map[string]string{"shard": "muc-1"})
	register("plenum-bridge", bridge.BridgeHTTP, bridge.Metrics, map[string]string{})
	register("plenum-edge", edge.Metrics, edge.Metrics, map[string]string{"haproxy_metrics": portOf(proxy)})
	register("plenum-prometheus", own, own, map[string]string{})
	register("plenum-turn", "127.0.0.1:3478", "x:", map[string]string{}) // tells nothing
	register("somebody-else", "127.0.0.1:1", "127.0.0.1:1", map[string]string{})

	// What differs from a cluster: ports, no TLS, and nobody has the patience.
	config := strings.NewReplacer("127.0.0.1:8500", catalogue.Address, "_interval: 10s", "_interval: 1s", "$1:9713", "$1:"+portOf(beside.URL),
		"$1:4646", "$1:"+portOf(nomad.Address), "scheme: https", "scheme: http").Replace(read(t, "monitoring/prometheus.yml"))
	for _, d := range []string{"local", "secrets"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "local", "prometheus.yml"), config)
	write(t, filepath.Join(dir, "local", "rules.yml"), read(t, "monitoring/rules.yml"))
	write(t, filepath.Join(dir, "secrets", "consul"), "none")
	start(t, "prometheus", exec.Command(stack.Path(t, "prometheus"), "--config.file="+filepath.Join(dir, "local", "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+own))
	p := prometheus{t, "http://" + own}

	want := map[string]string{"plenum-agent": "muc", "plenum-shard": "muc", "plenum-bridge": "muc", "plenum-edge": "muc", "plenum-prometheus": "muc",
		"plenum-overlay": "muc", "haproxy": "muc", "nomad": "muc", "consul": ""}
	type targets struct {
		ActiveTargets []struct {
			Labels    map[string]string
			Health    string
			LastError string
			ScrapeURL string
		}
	}
	var found targets
	within(t, time.Minute, func() string {
		found = targets{}
		if err := p.get("targets?state=active", &found); err != nil {
			return err.Error()
		}
		up := map[string]string{}
		for _, target := range found.ActiveTargets {
			if target.Health != "up" {
				return fmt.Sprintf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
			}
			up[target.Labels["job"]] = target.Labels["region"]
		}
		if len(up) != len(want) || len(found.ActiveTargets) != len(want) {
			return fmt.Sprintf("%d targets of jobs %v, want those of %v", len(found.ActiveTargets), up, want)
		}
		return ""
	})
	for _, target := range found.ActiveTargets {
		l := target.Labels
		if region, ok := want[l["job"]]; !ok || l["region"] != region || l["job"] == "plenum-shard" && l["shard"] != "muc-1" ||
			l["job"] == "plenum-overlay" && l["roles"] != "server,edge" || region != "" && l["host"] == "" {
			t.Errorf("labels %v", l)
		}
	}

	var names []string
	within(t, 30*time.Second, func() string { // a second scrape of all: rates need two
		if err := p.get("label/__name__/values", &names); err != nil {
			return err.Error()
		}
		if !slices.Contains(names, "plenum_edge_weight") {
			return "the edge has not seen the shard"
		}
		return ""
	})
	// Those that are there only after something has happened.
	names = append(names, literals(t, "../signaling/edge/metrics.go", "../signaling/handover/handover.go")...)
	names = append(names, "ALERTS")
	check := func(where, expr string, empty bool) {
		t.Helper()
		expr = strings.NewReplacer("$__rate_interval", "5s", "$region", ".*", "$host", ".*", "$plane", "media").Replace(expr)
		for _, name := range regexp.MustCompile(`\b(plenum|jitsi|process|haproxy)_[a-z0-9_]+\b`).FindAllString(expr, -1) {
			if !slices.Contains(names, name) && !slices.Contains(names, strings.TrimSuffix(name, "_bucket")) {
				t.Errorf("%s: nobody tells %s", where, name)
			}
		}
		within(t, 30*time.Second, func() string {
			var answer struct{ Result []any }
			if err := p.get("query?query="+url.QueryEscape(expr), &answer); err != nil {
				t.Fatalf("%s: %s: %v", where, expr, err)
			}
			if len(answer.Result) == 0 && !empty {
				return fmt.Sprintf("%s: %s: nothing", where, expr)
			}
			return ""
		})
	}
	for path, d := range dashboards(t) {
		for _, panel := range d.Panels {
			for _, q := range panel.Targets {
				check(path+": "+panel.Title, q.Expr, slices.Contains([]string{"Drains", "Alerts", "Handed over"}, panel.Title))
			}
		}
		for _, v := range d.Templating.List {
			if labels := regexp.MustCompile(`^label_values\((.+), [a-z]+\)$`).FindStringSubmatch(v.Definition); labels != nil {
				check(path+": $"+v.Name, labels[1], false)
			} else if v.Type == "query" {
				t.Errorf("%s: $%s is %s", path, v.Name, v.Definition)
			}
		}
	}
	for _, a := range alerts(t, read(t, "monitoring/rules.yml")) {
		check("alert "+a.Alert, a.Expr, true)
	}
	within(t, 30*time.Second, func() string {
		var rules struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError, State string }
			}
		}
		if err := p.get("rules", &rules); err != nil {
			return err.Error()
		}
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if r.Health != "ok" {
					return fmt.Sprintf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		return ""
	})
}

// TestPrometheusJob runs the job on the real Nomad: with its rules it finds itself in the catalogue. Nomad has no auth
// method in this Consul, so the job does not ask for a token.
func TestPrometheusJob(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	catalogue := stack.Consul(t)
	server := stack.Nomad(t, catalogue)
	job := parse(t, "prometheus.nomad.hcl", fmt.Sprintf("nodes=[%q]", nodeOf(t, server)), "prometheus="+stack.Path(t, "prometheus"), "consul="+catalogue.URL(),
		`alertmanagers=["127.0.0.1:9"]`, "disk=300", "driver=raw_exec", "user=root")
	task := job.TaskGroups[0].Tasks[0]
	task.Consul, task.Identities = nil, nil
	if answer, _, err := nomadOf(t, server).Jobs().Validate(parse(t, "grafana.nomad.hcl", `nodes=["a"]`), nil); err != nil || answer.Error != "" {
		t.Errorf("Nomad refuses Grafana's job: %+v, %v", answer, err) // Grafana itself is not here
	}
	run(t, server, job)
	var own string
	within(t, time.Minute, func() string {
		entries, err := servicesOf(catalogue, "plenum-prometheus")
		if err != nil || len(entries) != 1 {
			return fmt.Sprintf("%d entries, %v", len(entries), err)
		}
		own = net.JoinHostPort(entries[0].Service.Address, fmt.Sprint(entries[0].Service.Port))
		return ""
	})
	p := prometheus{t, "http://" + own}
	within(t, time.Minute, func() string {
		var found struct {
			ActiveTargets []struct {
				Labels map[string]string
				Health string
			}
		}
		if err := p.get("targets?state=active", &found); err != nil {
			return err.Error()
		}
		for _, target := range found.ActiveTargets {
			if target.Labels["job"] == "plenum-prometheus" && target.Labels["instance"] == own && target.Health == "up" {
				return ""
			}
		}
		return fmt.Sprintf("targets %+v", found.ActiveTargets)
	})
	var rules struct {
		Groups []struct{ Rules []struct{ Name string } }
	}
	if err := p.get("rules", &rules); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range rules.Groups {
		n += len(g.Rules)
	}
	if want := len(alerts(t, read(t, "monitoring/rules.yml"))); n != want {
		t.Errorf("%d rules, want %d", n, want)
	}
	var managers struct{ ActiveAlertmanagers []struct{ URL string } }
	within(t, 30*time.Second, func() string {
		if err := p.get("alertmanagers", &managers); err != nil || len(managers.ActiveAlertmanagers) != 1 {
			return fmt.Sprintf("Alertmanagers %+v, %v", managers, err)
		}
		return ""
	})
}

// prometheus is its API.
type prometheus struct {
	t   *testing.T
	url string
}

func (p prometheus) get(path string, into any) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(p.url + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", res.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", res.Status, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// literals are the names of metrics in Go files.
func literals(t *testing.T, paths ...string) (all []string) {
	for _, path := range paths {
		for _, m := range regexp.MustCompile(`"(plenum_[a-z_]+)"`).FindAllStringSubmatch(read(t, path), -1) {
			all = append(all, m[1])
		}
	}
	return all
}

// hostMetrics are what agents and overlays tell; TestHostMetrics holds them against the sources.
const hostMetrics = `
plenum_agent_certificate_seconds 1e6
plenum_overlay_up{plane="media",backend="wireguard"} 1
plenum_overlay_nat{plane="media",kind="none"} 1
plenum_overlay_certificate_seconds{plane="control"} 1e6
plenum_overlay_hosts 2
plenum_overlay_problems 0
plenum_overlay_guard_dropped_packets 0
plenum_overlay_records_refused_total{reason="signature"} 0
plenum_overlay_path_up{plane="media",peer="h2"} 1
plenum_overlay_path_rtt_seconds{plane="media",peer="h2"} 0.01
plenum_overlay_path_loss_ratio{plane="media",peer="h2"} 0
plenum_overlay_path_mtu_bytes{plane="media",peer="h2"} 1380
plenum_overlay_path_relayed{plane="media",peer="h2"} 0
plenum_overlay_path_handshake_age_seconds{plane="media",peer="h2"} 30
`

// TestHostMetrics: the names and labels above are those of the sources.
func TestHostMetrics(t *testing.T) {
	overlay, agent := read(t, "../overlay/metrics.go"), read(t, "../agent/loop.go")
	for _, m := range regexp.MustCompile(`(?m)^([a-z_]+)(?:\{plane=.*?,(\w+)=)?`).FindAllStringSubmatch(hostMetrics, -1) {
		name, label := m[1], m[2]
		if name == "" {
			continue
		}
		short := strings.TrimPrefix(name, "plenum_overlay_")
		if !strings.Contains(overlay, `"`+name+`"`) && !strings.Contains(overlay, `perPath("`+short+`"`) && !strings.Contains(agent, `"`+name+`"`) {
			t.Errorf("%s is in no source", name)
		}
		if label != "" && !strings.Contains(overlay, `"`+label+`"`) {
			t.Errorf("%s has no label %s", name, label)
		}
	}
}

// A ready is what plenum writes when it listens.
type ready struct {
	HTTP       string `json:"http"`
	XMPP       string `json:"xmpp"`
	BridgeHTTP string `json:"bridge_http"`
	Metrics    string `json:"metrics"`
}

// build makes plenum.
func build(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "plenum")
	cmd := exec.Command("go", "build", "-o", path, "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// startPlenum runs the plenum of dir until the end of the test, and returns where it listens.
func startPlenum(t *testing.T, dir, name string, args ...string) ready {
	t.Helper()
	file := filepath.Join(dir, name+".json")
	died := start(t, name, exec.Command(filepath.Join(dir, "plenum"), append(args, "--metrics", "127.0.0.1:0", "--ready-file", file)...))
	var r ready
	within(t, time.Minute, func() string {
		if out := died(); out != "" {
			t.Fatalf("%s ended: %s", name, out)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err.Error()
		}
		if err := json.Unmarshal(text, &r); err != nil {
			return err.Error()
		}
		return ""
	})
	return r
}

// start runs a process until the end of the test. What it returns tells what a process that has ended had to say.
func start(t *testing.T, name string, cmd *exec.Cmd) (died func() string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("%s: %s", name, out.Bytes())
		}
	})
	return func() string {
		select {
		case <-done:
			return out.String() + " "
		default:
			return ""
		}
	}
}

// within tries until nothing is missing any more.
func within(t *testing.T, limit time.Duration, missing func() string) {
	t.Helper()
	why := missing()
	for end := time.Now().Add(limit); why != ""; why = missing() {
		if time.Now().After(end) {
			t.Fatalf("after %v: %s", limit, why)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func hostOf(address string) string { return strings.TrimPrefix(address, "http://") }

func portOf(address string) string { return address[strings.LastIndex(address, ":")+1:] }

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
