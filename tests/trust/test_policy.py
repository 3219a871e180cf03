import pytest
from tests.conftest import policy_of

from safelight.errors import InvalidRequest
from safelight.settings import Settings
from safelight.studio import open_studio
from safelight.trust.policy import Policy


def policy(**environment: str) -> Policy:
    return policy_of(
        Settings.from_environment({f"SAFELIGHT_TRUST_{name}": value for name, value in environment.items()})
    )


def test_pictures_are_marked_unless_the_operator_says_otherwise() -> None:
    assert policy() == Policy(signature=True, watermark=True, profiles=frozenset({"eu"}), timestamp="off", prompt=False)
    assert policy(SIGNATURE="off", WATERMARK="off", PROFILES="") == Policy(
        signature=False, watermark=False, profiles=frozenset()
    )


def test_every_choice_is_a_setting() -> None:
    chosen = policy(
        PROFILES="eu cn",
        PRODUCER="91110000600037341L",
        TIMESTAMP="required",
        TIMESTAMP_URL="http://tsa.example.com",
        OVERSIGHT="human_validated",
        TRAINING="not-allowed",
        PROMPT="on",
    )
    assert chosen == Policy(
        profiles=frozenset({"eu", "cn"}),
        producer="91110000600037341L",
        timestamp="required",
        timestamp_url="http://tsa.example.com",
        oversight="human_validated",
        training="not-allowed",
        prompt=True,
    )


def test_a_studio_does_not_open_with_a_policy_that_cannot_be() -> None:
    with pytest.raises(InvalidRequest, match="no profile uk"):
        open_studio(Settings.from_environment(trust_profiles="uk"))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PROFILES": "eu uk"}, "SAFELIGHT_TRUST_PROFILES: no profile uk; there are eu, cn"),
        ({"PROFILES": "cn"}, "SAFELIGHT_TRUST_PRODUCER: the profile cn needs the name"),
        ({"PROFILES": "cn", "PRODUCER": 'a"b'}, 'SAFELIGHT_TRUST_PRODUCER.*a"b'),
        ({"PROFILES": "cn", "PRODUCER": "a b"}, "without blanks"),
        (
            {"TIMESTAMP": "required"},
            "SAFELIGHT_TRUST_TIMESTAMP_URL: SAFELIGHT_TRUST_TIMESTAMP=required needs the address",
        ),
        ({"TIMESTAMP": "best-effort", "TIMESTAMP_URL": "tsa.example.com"}, "http:// or https://"),
        ({"TIMESTAMP": "sometimes"}, "SAFELIGHT_TRUST_TIMESTAMP.*sometimes"),
        ({"SIGNATURE": "perhaps"}, "SAFELIGHT_TRUST_SIGNATURE.*perhaps"),
    ],
)
def test_what_cannot_be_is_named_with_its_setting(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        policy(**environment)
