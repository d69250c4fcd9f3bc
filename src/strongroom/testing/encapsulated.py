"""What is random in the test vectors for HPKE: key encapsulations, made once and kept."""

from __future__ import annotations

from typing import Final

MLKEM768X25519_IDENTITY: Final = (
    "hpke-mlkem768x25519-secret:5xuFH9KgyPxCpE-ocnNvyaryilhQy8wHAXhqmVOqclBidmkn"
)
MLKEM768X25519_KID: Final = "P24EItgz9bBoBxiaBNBv9A"
MLKEM768X25519_WRAPPED: Final = (
    "ens7QiphNRjtf_p0v65Cw1xewMWeh7bgqe70sTqdMocDeUtFjGG5q83AGk_GmH64bClqw5it1gusODsk5VBCInKsEWfP"
    "GqOC3IkACsNhG4TgPUq1PSs9gmgYORDbH64OfIfAygJVBOCgxwSJ2LUN6Pp48W5u8R6D_OBpNby3k23QgR7U5xdrYLaE"
    "JMwHBgzyrfVdC06t6e-zB9FFGE-HsJ9EgrTS_aFJJFdA0O6RlwRJzK-C3yhOW2mJr4uEfpkAFL8BDBO0iL_x8GekSv-E"
    "ZJj_ELzP4otyiK7jbvwazaZW6jQkksjT0L_cR-lrEu1FUieEbiKpjqI8rA7AkNuRN16q3QLpm5gGWJtkdBLY0F4A355G"
    "nVvoNNDPcfXBeXMgiOuLrEcNJJpmxtHNUSFTnRJaqyyN3o9uMHEcuZpyx9J5ENJfxy1FwlmIVeFJbaHWabgSZJX3wBjj"
    "G6wyteXuxEgoC_cqdWIvCQvwaSouU4M8Co1PkbPzawImq2uzWJsPPiPPwaRH4CTSHhEi_4kn4vHQInlpHlSN_fJLa1-B"
    "MikYI8CgMN-kwJsyDA751lX7y6MJMgJewaTKPDMoEnWkMJkN4XVrcsiXPHltA51sVRysqqm8uOlv-NtSSIayFOqS3Yww"
    "9OZncQwEHmSuj1PvvWLSeUObbsAiHvJqY9wax2MQ26v--YMv_2nXV4zxCWPu8Rj02AG3iApYpcjMazMY6LYYZP0_Iq17"
    "cf85KYOsSdCjqPMgt-ONna16yH_ITWiRWhG-xJiO0skli0RZL5HZ9pUQb6H3tU3f0LoiVb_PN9txrv_gjWerUviQdfU7"
    "y0WQ_beqpSF3Rp4pYL9Xp7V-1TfnwiMmwOe8mVHY-Nixp_1y5juPuGKFNdXmz3w0tLUI72HHPbhBQxg67OtN4b_ZoIzL"
    "DrzgTjIfcaf2xP0MlWyTO9Ylspk8yVt4DMqO7zfzbAY6CWeIkThLl_itqP0MaoD5Bfxj5voiz6MWcu9ZeL8h8GgTWvCB"
    "vmM8nYvqIlWd15-pRXajslONCR9ecpgSE8P4AxDWMhxF3YEToumgi5hvhLSn60XlIX2sh9SMexDZeXWxOu0S5BCI_zhJ"
    "48V4-u3nYkFUiGoD7dBFjbP_WOUEcqSLG41kqka5RXTTvsqDAS4aivtvnVATSxiXrIAtuarrFsMlS9sUa5Rqk4M2l2W4"
    "62MKMEJCUrKuiYneSCY71Lp0jimukq8FhITywVXwDYzrhJnj9wshgY9EIz4JyvR-xzuJxuz6rWpXzTcs_ZQg_7nBN2em"
    "8gMorfp3dPaqlqlICqGDDpv3pywFlx7e_f_qvR-l4DnyT3iB_K19yGl_7lRVKZHn8wn-kK68LTo0XwmfJrBuzJLcuwmB"
    "ClzP5x7himpBDoYZHCpv2nuhG8FSnnnVKytdEpAxJFJDXULrbKzYVMl-8vtdR1xLfud_rDxy8ZYSTw0QFwCweDPISvVl"
    "jwELHpxaVBTK6x-vIk9hCCRISrfoJO-zQCy69MN51rP5wr9QKd9btlq0Imc4Z9qWqlUo6-1vYPBeTl9YEnjnvQ"
)
X25519_IDENTITY: Final = "hpke-x25519-secret:ZaAC1yQ0g5J7SoJxxW6he3FbhbSXNVzZ8B37lM-C_CLQBbfn"
X25519_KID: Final = "nhNXGb_E7QKnw2H2wkuWWw"
X25519_WRAPPED: Final = (
    "DKSv1JHHwyav73YSbZ6gDUmyPF2zJ3txvvwmxCc_QDM4omSSbaxhZDj-ZfYuZik-LLbz3QplxHaM6UPCIPogY6GxwYzZ"
    "lzUOkoKSmGTL4p0"
)
X25519_WRAPPED_FOR_ANOTHER_BUNDLE: Final = (
    "VUZ-zvnKvNus9nmp9XOpjPhxOfk0CLgICGAR4X5PFSePztNw1-t22lg8PNVS9fI0WvUo3YYVch171F9cIJdqItZLKoJT"
    "QM967dq2qmWu-go"
)
X25519_WRAPPED_16_BYTES: Final = (
    "DFjFAg6wleN9Dean2ll1sXp5s419R5EqTRKwMsVn9jsgT5yih8TegzKVXwCVfolcJb4EXMkG3TPeOGIsyd8QEA"
)
