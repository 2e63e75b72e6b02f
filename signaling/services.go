package signaling

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// A Service is one STUN or TURN server (XEP-0215).
type Service struct {
	Type      string `json:"type"` // stun, turn, turns
	Host      string `json:"host"`
	Port      string `json:"port"`
	Transport string `json:"transport,omitempty"` // udp, tcp
	Username  string `json:"username,omitempty"`
	Password  string `json:"password,omitempty"`
	// Restricted is "1" where a name and a password are needed.
	Restricted string `json:"restricted,omitempty"`

	// Secret is what the server shares with those who make its users (draft-uberti-behave-turn-rest-00, as coturn
	// has it). With it, Username and Password are made for each client.
	Secret string `json:"-"`
}

// userLife is how long a made user may ask for relays: as long as the longest call, for ICE may restart at its end.
const userLife = 24 * time.Hour

// A serviceList is what clients are told of; it may be replaced at any time.
type serviceList struct{ atomic.Pointer[[]Service] }

// at is what a client is told at now.
func (l *serviceList) at(now time.Time) []Service {
	if all := l.Load(); all != nil {
		return services(*all, now)
	}
	return nil
}

// services are all as a client is told at now.
func services(all []Service, now time.Time) []Service {
	told := slices.Clone(all)
	for i, s := range told {
		if s.Secret == "" {
			continue
		}
		told[i].Username = strconv.FormatInt(now.Add(userLife).Unix(), 10)
		mac := hmac.New(sha1.New, []byte(s.Secret))
		mac.Write([]byte(told[i].Username))
		told[i].Password = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return told
}
