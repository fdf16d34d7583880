"""Text in many languages, for whatever text must survive."""

from __future__ import annotations

# A sentence in each of 26 languages.
LANGUAGES = (
    "今天天气怎么样？", "What is the weather?", "天気はどうですか。", "날씨 어때요?", "Wie ist das Wetter?",
    "Quel temps fait-il à Besançon ?", "¿Qué tiempo hace mañana?", "Com'è il tempo? È sereno.", "Está a chover?",
    "Какая погода?", "Jaka jest pogoda?", "Wat voor weer is het?", "Hava nasıl?", "Jaké je počasí?",
    "Thời tiết thế nào?", "هوا چطور است؟", "Milyen az időjárás?", "Τι καιρό κάνει;", "Cum e vremea?",
    "Hur är vädret?", "Яка погода?", "Millainen sää on?", "Hvordan er vejret?", "كيف الطقس؟", "Какво е времето?",
    "Hvordan er været på fjellet?",
)  # fmt: skip
