package edge

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func write(t *testing.T, p Proxy) {
	t.Helper()
	files, err := p.Files(View{Shards: []Shard{{Name: "muc-1", Addr: "10.77.0.2:1"}, {Name: "muc-6", Addr: "[fd77::2]:1"}},
		Bridges: []Bridge{{"h6", "[fd77::3]:2"}}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(p.Path(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConfig has the real HAProxy look at what is made for it.
func TestConfig(t *testing.T) {
	p := Proxy{Dir: t.TempDir(), HTTP: ":8088", Region: "muc", Offload: "127.0.0.1:9", Answer: "127.0.0.1:9",
		Overlay: []string{"10.77.0.0/16"}, Metrics: "127.0.0.1:9719",
		HTTPS: "127.0.0.1:8443", Names: []string{"meet.example", "muc.meet.example"}}
	for _, n := range p.Names {
		if err := placeholder(p.certificate(n), n); err != nil {
			t.Fatal(err)
		}
	}
	write(t, p)
	out, err := exec.Command("haproxy", "-c", "-f", p.Path(fileConfig)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
