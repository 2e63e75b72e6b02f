package join

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"plenum/overlay/netlab/stack"
)

// nomadClient starts a client that claims a name and a pool, with an introduction or without.
func (l *lab) nomadClient(t *testing.T, name, pool, introduction string) *process {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { stack.Sweep(dir) })
	p := stack.Ports(t, 2)
	type object = map[string]any
	if introduction != "" {
		if err := os.MkdirAll(filepath.Join(dir, "data", "client"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "data", "client", "intro_token.jwt"), []byte(introduction), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	identity := object{"aud": []string{"consul.io"}, "ttl": "1h"}
	file := write(t, filepath.Join(dir, "nomad.json"), object{"region": "test", "datacenter": "ber", "name": name, "data_dir": filepath.Join(dir, "data"), "bind_addr": "127.0.0.1",
		"advertise": object{"http": "127.0.0.1", "rpc": "127.0.0.1", "serf": "127.0.0.1"},
		"ports":     object{"http": p[0], "rpc": p[1]}, "acl": object{"enabled": true}, "leave_on_terminate": false,
		"client": object{"enabled": true, "servers": []string{fmt.Sprintf("127.0.0.1:%d", l.rpc)}, "node_pool": pool,
			"options":  object{"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean", "driver.allowlist": "raw_exec"},
			"template": object{"wait": object{"min": "200ms", "max": "1s"}}},
		"plugin": object{"raw_exec": object{"config": object{"enabled": true}}},
		"consul": object{"address": l.consul, "token": l.answer.Nomad.ConsulToken, "client_auto_join": false, "server_auto_join": false, "auto_advertise": false,
			"service_identity": identity, "task_identity": identity}})
	return start(t, dir, stack.Path(t, "nomad"), "agent", "-config", file)
}

// node is what Nomad says of the clients by that name.
func (l *lab) nodes(name string) (all []*nomad.NodeListStub) {
	l.t.Helper()
	list, _, err := l.management().Nodes().List(nil)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, n := range list {
		if n.Name == name {
			all = append(all, n)
		}
	}
	return all
}

func (l *lab) management() *nomad.Client {
	c, err := newNomad(l.nomad, l.service.common.Nomad, "", "test")
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// TestNomad: only who was introduced registers, as what it was introduced; and its tasks log in to Consul by what they are.
func TestNomad(t *testing.T) {
	l := newLab(t, options{})
	ctx := t.Context()
	all := map[string]keyring{}
	join := func(name string, roles ...string) Answer {
		k := newKeys(t)
		all[name] = k
		a, err := l.client(k).Enrol(ctx, l.token("ber", roles...), request(name, k))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	b1, s1 := join("b1", RoleBridge), join("sh1", RoleShard)

	// Four that must not get in, while the one that may does: when it is ready, they had their chance.
	refused := []*process{
		l.nomadClient(t, "stranger", "plenum-bridge", ""),
		l.nomadClient(t, "other", "plenum-bridge", b1.Nomad.Introduction),
		l.nomadClient(t, "b1", "plenum-server", b1.Nomad.Introduction),
		l.nomadClient(t, "b1", "plenum-shard", ""),
	}
	sh1 := l.nomadClient(t, "sh1", s1.Nomad.Pool, s1.Nomad.Introduction)
	l.eventually("sh1 is ready and known", func() error {
		if n := l.nodes("sh1"); len(n) != 1 || n[0].Status != "ready" || n[0].NodePool != "plenum-shard" || n[0].SchedulingEligibility != "eligible" {
			return fmt.Errorf("nodes: %+v", n)
		}
		var h hostState
		st, _, err := l.service.store(ctx)
		if err != nil {
			return err
		}
		if _, err := st.get(ctx, statesPrefix+"sh1", &h); err != nil || h.Node != l.nodes("sh1")[0].ID {
			return fmt.Errorf("node %q is noted, %v", h.Node, err)
		}
		return nil
	})
	for i, p := range refused {
		l.eventually("the refusal of client "+fmt.Sprint(i), func() error {
			if out := p.out.String(); !strings.Contains(out, "ermission denied") && !strings.Contains(out, "ntroduction") {
				return errors.New(out[max(0, len(out)-300):])
			}
			return nil
		})
		p.kill()
	}
	for _, name := range []string{"stranger", "other", "b1"} {
		if n := l.nodes(name); len(n) != 0 {
			t.Errorf("%s is registered: %+v", name, n[0])
		}
	}

	t.Run("workloads", func(t *testing.T) { l.workloads(t) })
	t.Run("ineligible", func(t *testing.T) {
		// Somebody with the right to introduces a client that is no host: it gets no work, and an admin hears of it.
		stray, err := introduce(ctx, l.management(), "stray", "plenum-shard")
		if err != nil {
			t.Fatal(err)
		}
		l.nomadClient(t, "stray", "plenum-shard", stray)
		l.eventually("the stray node is ineligible", func() error {
			if n := l.nodes("stray"); len(n) != 1 || n[0].SchedulingEligibility != "ineligible" {
				return fmt.Errorf("%+v", n)
			}
			if len(l.audited(func(e Event) bool { return e.What == "node-refused" && e.Host == "stray" && e.Alarm })) != 1 {
				return errors.New("no audit line")
			}
			return nil
		})
	})
	t.Run("accounts", func(t *testing.T) {
		v, _, err := l.management().Variables().Peek(accountsVariable, nil)
		if err != nil || v == nil || len(v.Items) != 3 || !strings.Contains(v.Items["sh1"], "SCRAM-SHA-256$4096:") || !strings.Contains(v.Items["sh1"], "SCRAM-SHA-1$4096:") {
			t.Errorf("accounts: %+v, %v", v, err)
		}
		p, _, err := l.management().Variables().Peek(passwordVariable("sh1"), nil)
		if err != nil || p == nil || p.Items["xmpp_user"] != "sh1" || len(p.Items["xmpp_password"]) < 20 {
			t.Errorf("password: %v", err)
		}
	})
	t.Run("thief", func(t *testing.T) { l.secrets(t, filepath.Join(sh1.cmd.Dir, "data", "client", "secret-id")) })
	t.Run("reboot", func(t *testing.T) { l.reboot(t, all["sh1"], all["b1"]) })
	t.Run("drain", func(t *testing.T) { l.drain(t, all["sh1"]) })
	t.Run("revoke", func(t *testing.T) {
		if err := l.admin.Revoke(ctx, "sh1", "", false); err != nil {
			t.Fatal(err)
		}
		v, _, err := l.management().Variables().Peek(accountsVariable, nil)
		if err != nil || v.Items["sh1"] != "" || len(v.Items) != 2 {
			t.Errorf("accounts after revoking: %+v, %v", v, err)
		}
		l.eventually("the node is gone or without work", func() error {
			if n := l.nodes("sh1"); len(n) > 0 && n[0].SchedulingEligibility != "ineligible" {
				return fmt.Errorf("%+v", n[0])
			}
			return nil
		})
	})
}

// drain has sh1 ask to go while a task of its runs: it hears of the task until that has ended, and gets no other.
func (l *lab) drain(t *testing.T, k keyring) {
	ctx, c := t.Context(), l.management()
	job := nomad.NewServiceJob("long", "long", "test", 50)
	job.NodePool, job.Datacenters = ptr("plenum-shard"), []string{"*"}
	mark := filepath.Join(t.TempDir(), "runs")
	task := nomad.NewTask("run", "raw_exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", "touch " + mark + "; exec sleep 600"})
	task.Resources = &nomad.Resources{CPU: ptr(20), MemoryMB: ptr(16)}
	if _, _, err := c.Jobs().Register(job.AddTaskGroup(nomad.NewTaskGroup("run", 1).AddTask(task)), nil); err != nil {
		t.Fatal(err)
	}
	l.eventually("the task runs", func() error { _, err := os.Stat(mark); return err })
	host := l.client(k)
	first, err := host.Retire(ctx, request("sh1", k))
	if err != nil || !slices.Contains(first.Tasks, "long.run[0]") || first.Node != l.nodes("sh1")[0].ID {
		t.Fatalf("at first: %+v, %v", first, err)
	}
	l.eventually("nothing runs there", func() error {
		now, err := l.service.retire(ctx, request("sh1", k), &Event{}) // asks more often than a host may
		if err == nil && len(now.(Leaving).Tasks) > 0 {
			err = fmt.Errorf("%v", now)
		}
		return err
	})
	if n := l.nodes("sh1"); n[0].SchedulingEligibility != "ineligible" {
		t.Errorf("it may get tasks: %+v", n[0])
	}
	_, err = l.client(l.first).Retire(ctx, request("s1", l.first))
	wantRefusal(t, "the last server", ReasonBad, err)
	wantRefusal(t, "revoking the last server", ReasonBad, l.admin.Revoke(ctx, "s1", "", false))
}

// workloads runs a shard's task and one of another job, and tries what the shard's may do in Consul.
func (l *lab) workloads(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := l.management()
	out := filepath.Join(t.TempDir(), "token")
	job := func(id string, command string, consul *nomad.Consul) *nomad.Job {
		j := nomad.NewServiceJob(id, id, "test", 50)
		j.NodePool, j.Datacenters = ptr("plenum-shard"), []string{"*"}
		task := nomad.NewTask("run", "raw_exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", command})
		task.Resources = &nomad.Resources{CPU: ptr(20), MemoryMB: ptr(16)}
		task.Consul = consul
		g := nomad.NewTaskGroup("run", 1).AddTask(task)
		g.RestartPolicy = &nomad.RestartPolicy{Attempts: ptr(0), Mode: ptr("fail")}
		g.Services = []*nomad.Service{{Name: "plenum-shard", Provider: "consul", PortLabel: "8000", AddressMode: "host"}}
		g.ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: ptr(0), Unlimited: ptr(false)}
		return j.AddTaskGroup(g)
	}
	if _, _, err := c.Jobs().Register(job("shard-one", "echo $CONSUL_TOKEN > "+out+".new; mv "+out+".new "+out+"; exec sleep 600", &nomad.Consul{}), nil); err != nil {
		t.Fatal(err)
	}
	var token string
	l.eventually("the shard's task has its token", func() error {
		b, err := os.ReadFile(out)
		if token = strings.TrimSpace(string(b)); err == nil && token == "" {
			err = errors.New("empty")
		}
		if err != nil {
			allocs, _, _ := c.Jobs().Allocations("shard-one", true, nil)
			for _, a := range allocs {
				for _, s := range a.TaskStates {
					for _, e := range s.Events {
						err = fmt.Errorf("%w; %s", err, e.DisplayMessage)
					}
				}
			}
		}
		return err
	})
	k, err := newConsul(l.consul, token)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key string) error {
		_, err := k.KV().Put(&api.KVPair{Key: key, Value: []byte("x")}, (&api.WriteOptions{}).WithContext(ctx))
		return err
	}
	_, _, session := k.Session().Create(&api.SessionEntry{Node: "s1", TTL: "10s"}, nil)
	_, _, token2 := k.ACL().TokenCreate(&api.ACLToken{}, nil)
	for _, x := range []struct {
		what string
		err  error
		ok   bool
	}{{"a room", put("plenum/rooms/x"), true}, {"a pin", put("plenum/pins/x"), true}, {"a session", session, true},
		{"a record", put("plenum/hosts/b1"), false}, {"private", put(statesPrefix + "b1"), false}, {"a hint", put("plenum/endpoints/b1"), false}, {"a token", token2, false}} {
		if (x.err == nil) != x.ok {
			t.Errorf("a shard's task, %s: %v", x.what, x.err)
		}
	}
	l.eventually("the shard's service is registered by its own identity", func() error {
		m, err := newConsul(l.consul, l.service.common.Consul)
		if err != nil {
			return err
		}
		s, _, err := m.Catalog().Service("plenum-shard", "", nil)
		if err == nil && len(s) != 1 {
			err = fmt.Errorf("%d instances", len(s))
		}
		return err
	})
	// A job of another name asks for the same and gets nothing, so its task does not start.
	stolen := filepath.Join(t.TempDir(), "token")
	if _, _, err := c.Jobs().Register(job("thief", "echo $CONSUL_TOKEN > "+stolen+"; exec sleep 600", &nomad.Consul{}), nil); err != nil {
		t.Fatal(err)
	}
	l.eventually("the other job is refused", func() error {
		if b, err := os.ReadFile(stolen); err == nil && len(strings.TrimSpace(string(b))) > 0 {
			t.Fatalf("a task of another job has a token: %s", b)
		}
		allocs, _, err := c.Jobs().Allocations("thief", true, nil)
		if err != nil {
			return err
		}
		for _, a := range allocs {
			if a.ClientStatus == "failed" {
				return nil
			}
		}
		return fmt.Errorf("%d allocations, none failed", len(allocs))
	})
	for _, id := range []string{"shard-one", "thief"} {
		if _, _, err := c.Jobs().Deregister(id, true, nil); err != nil {
			t.Error(err)
		}
	}
	l.eventually("tasks have ended", func() error {
		node := l.nodes("sh1")[0].ID
		allocs, _, err := c.Nodes().Allocations(node, nil)
		if err != nil {
			return err
		}
		for _, a := range allocs {
			if a.ClientStatus == "running" || a.ClientStatus == "pending" {
				return fmt.Errorf("%s is %s", a.JobID, a.ClientStatus)
			}
		}
		return nil
	})
}

// secrets tries what a thief of the node sh1 has towards Nomad: the node's own secret, and the identity of a task that runs
// on it. They do not read what is of other hosts' jobs, nor what only shards may, and start nothing.
func (l *lab) secrets(t *testing.T, secretFile string) {
	c := l.management()
	identity := filepath.Join(t.TempDir(), "identity")
	job := nomad.NewServiceJob("bridge-sh1", "bridge-sh1", "test", 50)
	job.NodePool, job.Datacenters = ptr("plenum-shard"), []string{"*"}
	task := nomad.NewTask("run", "raw_exec").SetConfig("command", "/bin/sh").
		SetConfig("args", []string{"-c", "echo $NOMAD_TOKEN > " + identity + ".new; mv " + identity + ".new " + identity + "; exec sleep 600"})
	task.Resources, task.Identity = &nomad.Resources{CPU: ptr(20), MemoryMB: ptr(16)}, &nomad.WorkloadIdentity{Env: true}
	if _, _, err := c.Jobs().Register(job.AddTaskGroup(nomad.NewTaskGroup("run", 1).AddTask(task)), nil); err != nil {
		t.Fatal(err)
	}
	var token string
	l.eventually("the task has its identity", func() error {
		b, err := os.ReadFile(identity)
		token = strings.TrimSpace(string(b))
		return err
	})
	secret, err := os.ReadFile(secretFile)
	if err != nil {
		t.Fatal(err)
	}
	for who, x := range map[string]struct {
		token string
		own   bool // it may read its own job's secret
	}{"the task": {token, true}, "the node": {strings.TrimSpace(string(secret)), false}} {
		n, err := newNomad(l.nomad, x.token, "", "test")
		if err != nil {
			t.Fatal(err)
		}
		read := func(path string) error {
			_, _, err := n.Variables().Read(path, nil)
			return err
		}
		write := nomad.NewVariable(accountsVariable)
		write.Items = nomad.VariableItems{"sh1": "x"}
		for _, a := range []struct {
			what string
			err  error
			ok   bool
		}{
			{"its own job's secret", read(passwordVariable("sh1")), x.own},
			{"another bridge's secret", read(passwordVariable("b1")), false},
			{"a shard's secrets", read("nomad/jobs/shard-one"), false},
			{"all accounts", read(accountsVariable), false},
			{"the accounts, to change them", func() error { _, _, err := n.Variables().Update(write, nil); return err }(), false},
			{"what other secrets there are", func() error {
				all, _, err := n.Variables().PrefixList("", nil)
				if err == nil && !slices.ContainsFunc(all, func(v *nomad.VariableMetadata) bool { return v.Path != passwordVariable("sh1") }) {
					err = errors.New("none")
				}
				return err
			}(), false},
			{"a job of its own", func() error { _, _, err := n.Jobs().Register(job, nil); return err }(), false},
			{"a token", func() error {
				_, _, err := n.ACLTokens().Create(&nomad.ACLToken{Name: "x", Type: "management"}, nil)
				return err
			}(), false},
			{"an introduction of another host", func() error { _, err := introduce(t.Context(), n, "evil", "plenum-server"); return err }(), false},
			{"a node that is drained", func() error {
				_, err := n.Nodes().ToggleEligibility(l.nodes("sh1")[0].ID, false, nil)
				return err
			}(), false},
			{"a snapshot", func() error {
				r, err := n.Operator().Snapshot(nil)
				if err == nil {
					r.Close()
				}
				return err
			}(), false},
		} {
			if (a.err == nil) != a.ok {
				t.Errorf("%s of a stolen host, %s: %v", who, a.what, a.err)
			}
		}
	}
	if _, _, err := c.Jobs().Deregister("bridge-sh1", true, nil); err != nil {
		t.Error(err)
	}
	l.eventually("its task has ended", func() error {
		allocs, _, err := c.Jobs().Allocations("bridge-sh1", true, nil)
		for _, a := range allocs {
			if a.ClientStatus == "running" || a.ClientStatus == "pending" {
				err = errors.Join(err, errors.New(a.ClientStatus))
			}
		}
		return err
	})
}

func ptr[T any](v T) *T { return &v }
