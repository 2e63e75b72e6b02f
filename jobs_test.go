package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"plenum/jobs"
	"plenum/overlay/netlab/stack"
	"plenum/signaling/client"
)

// An estate is a real Nomad with a real Consul, on which the commands run jobs of the real binary. Its one node has
// every role, in muc.
type estate struct {
	t      *testing.T
	nomad  *api.Client
	host   string
	binary string
	dir    string
	data   string   // Nomad's
	vars   []string // for every job
	env    []string
}

func newEstate(t *testing.T) *estate {
	t.Helper()
	consul := stack.Consul(t)
	turn := `{"Name": "plenum-turn", "Port": 3478, "Address": "192.0.2.7", "Tags": ["region-muc"]}`
	req, err := http.NewRequest(http.MethodPut, consul.URL()+"/v1/agent/service/register", strings.NewReader(turn))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", err, res)
	}
	res.Body.Close()
	server := stack.Nomad(t, consul)
	e := &estate{t: t, data: filepath.Join(server.Dir, "data"), env: append(os.Environ(), "NOMAD_ADDR="+server.URL())}
	if e.dir, err = os.MkdirTemp("", "jobs"); err != nil { // short: a socket's path has 107 bytes
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(e.dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	e.binary = filepath.Join(e.dir, "plenum") // which it is when it is called so: see TestMain
	if err := os.Symlink(self, e.binary); err != nil {
		t.Fatal(err)
	}
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		t.Fatalf("%v: Debian's package haproxy has it", err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if e.nomad, err = api.NewClient(&api.Config{Address: server.URL(), HttpClient: &http.Client{Transport: transport}}); err != nil {
		t.Fatal(err)
	}
	nodes, _, err := e.nomad.Nodes().List(nil)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	e.host = nodes[0].Name
	region, roles := "muc", "shard,bridge,edge"
	if _, err := e.nomad.Nodes().Meta().Apply(&api.NodeMetaApplyRequest{NodeID: nodes[0].ID, Meta: map[string]*string{"plenum_region": &region, "plenum_roles": &roles}}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node has its meta", func() bool {
		n, _, err := e.nomad.Nodes().Info(nodes[0].ID, nil)
		return err == nil && n.Meta["plenum_roles"] != ""
	})
	for path, items := range map[string]api.VariableItems{ // as the join service does
		"plenum/accounts":             {e.host: strings.TrimSpace(strings.TrimPrefix(scramLine(t, e.host, "secret"), e.host))},
		"nomad/jobs/bridge-" + e.host: {"xmpp_user": e.host, "xmpp_password": "secret"},
		"nomad/jobs/turn-muc":         {"secret": "relays-secret"}, // as an operator does
	} {
		v := api.NewVariable(path)
		v.Items = items
		if _, _, err := e.nomad.Variables().Create(v, nil); err != nil {
			t.Fatal(err)
		}
	}
	e.vars = []string{"driver=raw_exec", "user=root", "plenum=" + e.binary, "cpu=50", "memory=64"}
	t.Cleanup(func() { // raw_exec's tasks outlive Nomad
		all, _, err := e.nomad.Jobs().List(nil)
		if err != nil {
			t.Errorf("jobs are left: %v", err)
		}
		for _, j := range all {
			for _, a := range e.allocs(j.ID) {
				if t.Failed() {
					e.confess(a)
				}
				for task := range a.TaskStates {
					_ = e.nomad.Allocations().Signal(&api.Allocation{ID: a.ID, NodeID: a.NodeID}, nil, task, "SIGKILL")
				}
			}
			if _, _, err := e.nomad.Jobs().Deregister(j.ID, true, nil); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "all tasks have ended", func() bool {
			all, _, err := e.nomad.Allocations().List(nil)
			return err == nil && !slices.ContainsFunc(all, func(a *api.AllocationListStub) bool {
				return a.ClientStatus == "running" || a.ClientStatus == "pending"
			})
		})
	})
	e.vars = append(e.vars, "consul="+consul.URL(), "control=127.0.0.0/8", "haproxy="+haproxy)
	return e
}

// confess prints what an allocation's tasks wrote last.
func (e *estate) confess(a *api.AllocationListStub) {
	for task, s := range a.TaskStates {
		for _, ev := range s.Events {
			e.t.Logf("%s/%s: %s %s", a.JobID, task, time.Unix(0, ev.Time).Format("15:04:05.0"), ev.DisplayMessage)
		}
		frames, errs := e.nomad.AllocFS().Logs(&api.Allocation{ID: a.ID, NodeID: a.NodeID}, false, task, "stderr", "end", 4000, nil, nil)
		select {
		case f := <-frames:
			if f != nil {
				e.t.Logf("%s/%s:\n%s", a.JobID, task, f.Data)
			}
		case <-errs:
		case <-time.After(time.Second):
		}
	}
}

// read returns a file of a job's allocation.
func (e *estate) read(job, path string) string {
	e.t.Helper()
	a := e.allocs(job)[0]
	text, err := os.ReadFile(filepath.Join(e.data, "alloc", a.ID, path)) // Nomad shows no secrets
	if err != nil {
		e.t.Fatal(err)
	}
	return string(text)
}

func (e *estate) allocs(job string) []*api.AllocationListStub {
	e.t.Helper()
	all, _, err := e.nomad.Jobs().Allocations(job, false, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	return all
}

// plenum runs a command and returns what it says and its exit status.
func (e *estate) plenum(args ...string) (string, int) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, e.binary, args...)
	cmd.Env, cmd.Cancel, cmd.WaitDelay = e.env, func() error { return cmd.Process.Signal(os.Interrupt) }, 10*time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) && ctx.Err() == nil {
		e.t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// must is plenum for what has to succeed; a job of its file's variables gets those of the estate.
func (e *estate) must(args ...string) string {
	e.t.Helper()
	if len(args) > 1 && args[1] == "add" {
		source, err := jobs.Spec{Kind: args[0]}.Source()
		if err != nil {
			e.t.Fatal(err)
		}
		for _, v := range e.vars {
			name, _, _ := strings.Cut(v, "=")
			if strings.Contains(source, `variable "`+name+`"`) {
				args = append(args, "--var", v)
			}
		}
	}
	out, status := e.plenum(args...)
	if status != 0 {
		e.t.Fatalf("plenum %s: status %d\n%s", strings.Join(args, " "), status, out)
	}
	return out
}

func (e *estate) list(kind string) map[string]jobs.Instance {
	e.t.Helper()
	var list []jobs.Instance
	out := e.must(kind, "list", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		e.t.Fatalf("%v: %s", err, out)
	}
	all := map[string]jobs.Instance{}
	for _, i := range list {
		all[i.Name] = i
	}
	return all
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute it is not so that %s", what)
		}
	}
}

// TestJobFlags looks up every flag of the job files in the commands that they run.
func TestJobFlags(t *testing.T) {
	for kind, part := range map[string]string{jobs.Shard: "signaling", jobs.Bridge: "bridge", jobs.Edge: "edge"} {
		source, err := jobs.Spec{Kind: kind}.Source()
		if err != nil {
			t.Fatal(err)
		}
		run, _, err := command().Find([]string{"run", part})
		if err != nil {
			t.Fatal(err)
		}
		probe, _, err := command().Find([]string{"probe"})
		if err != nil {
			t.Fatal(err)
		}
		flags := regexp.MustCompile(`"--([a-z-]+)"`).FindAllStringSubmatch(source, -1)
		if len(flags) < 10 {
			t.Errorf("the file of %s has %d flags", kind, len(flags))
		}
		for _, f := range flags {
			if run.Flags().Lookup(f[1]) == nil && probe.Flags().Lookup(f[1]) == nil {
				t.Errorf("%s: plenum run %s has no --%s", kind, part, f[1])
			}
		}
	}
}

// TestJobs has the commands make a region out of nothing on the real Nomad: a shard, a bridge, an edge; a call through the
// edge; a second shard, which takes the call when the first is drained. Nothing is restarted by any of it.
func TestJobs(t *testing.T) {
	e := newEstate(t)
	_, port, _ := strings.Cut(freePort(t), ":")
	_, media, _ := strings.Cut(freePort(t), ":")
	if out, status := e.plenum("shard", "add", "muc-1", "--region", "muc"); status != 1 || !strings.Contains(out, "--domain") {
		t.Errorf("a first shard without a domain: status %d: %s", status, out)
	}
	if out := e.must("shard", "add", "muc-1", "--region", "muc", "--domain", "localhost", "--plan"); !strings.Contains(out, "new; nobody notices") {
		t.Errorf("the plan: %s", out)
	}
	if len(e.list(jobs.Shard)) != 0 {
		t.Error("a plan made a shard")
	}
	url := "http://127.0.0.1:" + port
	t.Log(e.must("edge", "add", "muc", "--domain", "localhost", "--http", port, "--https", "0", "--var", "dir="+filepath.Join(e.dir, "edge")))
	t.Log(e.must("bridge", "add", e.host, "--domain", "localhost", "--var", "media_port="+media, "--ws-url", strings.Replace(url, "http", "ws", 1)))
	began := time.Now()
	t.Log(e.must("shard", "add", "muc-1", "--region", "muc"))
	var people []*client.Participant
	join := func(room string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for {
			p, err := client.Join(ctx, client.Config{URL: url, Room: room, Name: "somebody", Rewriting: true, ResumeAfter: 500 * time.Millisecond,
				Send: client.Media{Audio: true, Video: true, Simulcast: true, DependencyDescriptor: true}})
			if err == nil {
				people = append(people, p)
				t.Cleanup(p.Close)
				return
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	join("first")
	t.Logf("shard add → first room after %v", time.Since(began).Round(time.Millisecond))
	join("first")
	hear := func() {
		t.Helper()
		since := time.Now()
		for _, p := range people {
			await(t, p, time.Minute, "hears the other", func(s client.Stats) bool { return heardSince(s, since) == 1 })
		}
	}
	hear()
	t.Logf("shard add → two people hear each other after %v", time.Since(began).Round(time.Millisecond))

	eventually(t, "the bridge's line tells of both", func() bool {
		b := e.list(jobs.Bridge)[e.host]
		return b.Load.People == 2 && b.Load.Rooms == 1 && b.Region == "muc"
	})
	eventually(t, "the shard's line tells of both", func() bool {
		s := e.list(jobs.Shard)["muc-1"]
		return s.Load.People == 2 && s.Load.Rooms == 1 && s.Load.Bridges == 1 && s.Why == ""
	})
	if out := e.must("shard", "add", "muc-1", "--region", "muc", "--plan"); !strings.Contains(out, "as it should be") {
		t.Errorf("a plan of what runs already: %s", out)
	}
	if out := e.must("shard", "add", "muc-1", "--region", "muc", "--plan", "--var", "log_level=info"); !strings.Contains(out, "moves 2 people in 1 room") {
		t.Errorf("a plan that stops a shard: %s", out)
	}
	if text := e.read("shard-muc-1", "shard/secrets/turn"); strings.Join(strings.Fields(text), " ") != "192.0.2.7 3478 relays-secret" {
		t.Errorf("the shard's TURN servers: %s", text)
	}
	e.must("shard", "add", "muc-2", "--region", "muc")
	eventually(t, "the bridge reports to both", func() bool { return e.list(jobs.Bridge)[e.host].Load.Shards == 2 })
	eventually(t, "both shards have the bridge", func() bool { return e.list(jobs.Shard)["muc-2"].Load.Bridges == 1 })

	t.Log(e.must("shard", "drain", "muc-1"))
	hear()
	eventually(t, "the room is on the other shard", func() bool {
		all := e.list(jobs.Shard)
		return all["muc-1"].Load.Rooms == 0 && all["muc-1"].Load.Drain == "drained" && all["muc-2"].Load.People == 2
	})
	removed := time.Now()
	e.must("shard", "rm", "muc-1")
	hear()
	if _, there := e.list(jobs.Shard)["muc-1"]; there {
		t.Error("the shard was not removed")
	}
	eventually(t, "the bridge has been told", func() bool { return e.list(jobs.Bridge)[e.host].Load.Shards == 1 })
	t.Logf("shard rm → the bridge told after %v", time.Since(removed).Round(time.Millisecond))

	eventually(t, "the list of the other shard has changed", func() bool { return !strings.Contains(e.read("shard-muc-2", "shard/local/shards"), "muc-1") })

	// With nobody to give its rooms to, a shard waits for its people.
	cmd := exec.Command(e.binary, "shard", "drain", "muc-2", "--force")
	cmd.Env = e.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "muc-2 drains", func() bool { return e.list(jobs.Shard)["muc-2"].Load.Drain == "draining" })
	cmd.Process.Signal(syscall.SIGINT)
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("a drain that was taken back: status %d: %s", cmd.ProcessState.ExitCode(), out.Bytes())
	}
	eventually(t, "muc-2 is in service again", func() bool { return e.list(jobs.Shard)["muc-2"].Load.Drain == "" })
	if out, status := e.plenum("shard", "drain", "muc-2", "--force", "--deadline", "1s"); status != 2 {
		t.Errorf("a drain that is not over in time: status %d: %s", status, out)
	}
	e.must("shard", "drain", "muc-2", "--cancel")
	eventually(t, "muc-2 is in service once more", func() bool { return e.list(jobs.Shard)["muc-2"].Load.Drain == "" })
	hear()
	for _, job := range []string{"bridge-" + e.host, "edge-muc", "shard-muc-2"} {
		list := e.allocs(job)
		if len(list) != 1 {
			t.Errorf("%s has %d allocations", job, len(list))
		}
		for _, a := range list {
			for task, s := range a.TaskStates {
				if s.Restarts != 0 {
					t.Errorf("%s/%s was restarted %d times", job, task, s.Restarts)
				}
			}
		}
	}
}
