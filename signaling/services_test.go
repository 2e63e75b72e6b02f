package signaling

import (
	"bytes"
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v4"
)

// TestServices: each client gets a TURN user that another implementation takes, for a day; the secret stays here.
func TestServices(t *testing.T) {
	now := time.Now()
	all := []Service{{Type: "stun", Host: "stun.example", Port: "3478"}, {Type: "turn", Host: "turn.example", Port: "3478", Restricted: "1", Secret: "s3cret"}}
	told := services(all, now)
	if told[0] != all[0] || all[1].Username != "" {
		t.Errorf("told %+v of %+v", told, all)
	}
	user, password := told[1].Username, told[1].Password
	if n, err := strconv.ParseInt(user, 10, 64); err != nil || time.Unix(n, 0).Sub(now) < 23*time.Hour {
		t.Errorf("user %s, %v", user, err)
	}
	logger := logging.NewDefaultLeveledLoggerForScope("turn", logging.LogLevelDisabled, &bytes.Buffer{})
	key, ok := turn.LongTermTURNRESTAuthHandler("s3cret", logger)(user, "meet.example", &net.UDPAddr{})
	if want := turn.GenerateAuthKey(user, "meet.example", password); !ok || !bytes.Equal(key, want) {
		t.Errorf("the server has %x for %s, the client %x", key, user, want)
	}
	text, err := json.Marshal(told)
	if err != nil || strings.Contains(string(text), "s3cret") {
		t.Errorf("%s, %v", text, err)
	}
	if later := services(all, now.Add(time.Hour)); later[1].Username == user {
		t.Error("an hour later it is the same user")
	}
}

// TestSetServices: whoever asks after a change is told of the new ones; a list that is wrong changes nothing.
func TestSetServices(t *testing.T) {
	var s Server
	if all := s.services.at(time.Now()); all != nil {
		t.Errorf("at first %+v", all)
	}
	given := []Service{{Type: "turn", Host: "turn.example", Port: "3478", Secret: "s3cret"}}
	if err := s.SetServices(given); err != nil {
		t.Fatal(err)
	}
	if given[0].Restricted != "" {
		t.Error("the caller's list is changed")
	}
	if err := s.SetServices([]Service{{Type: "http", Host: "turn.example"}}); err == nil {
		t.Error("a service of no type is taken")
	}
	all := s.services.at(time.Now())
	if len(all) != 1 || all[0].Host != "turn.example" || all[0].Restricted != "1" || all[0].Password == "" {
		t.Errorf("told %+v", all)
	}
	if err := s.SetServices(nil); err != nil || len(s.services.at(time.Now())) != 0 {
		t.Errorf("none: %v", err)
	}
}
