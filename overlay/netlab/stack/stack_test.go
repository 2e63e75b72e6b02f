package stack

import (
	"context"
	"encoding/json"
	"testing"

	"go.uber.org/goleak"
)

// TestServers starts all three; Nomad is seen in Consul's catalogue.
func TestServers(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	consul := Consul(t)
	Vault(t)
	Nomad(t, consul)
	consul.await("/v1/catalog/services", func(body []byte) bool {
		var services map[string][]string
		return json.Unmarshal(body, &services) == nil && services["nomad-client"] != nil
	})
	consul.Kill()
	if _, err := fetch(context.Background(), consul.URL()+"/v1/status/leader"); err == nil {
		t.Error("a killed Consul answers")
	}
}
