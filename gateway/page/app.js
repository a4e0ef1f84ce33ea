const answer = await fetch("/v1/models");
const models = await answer.json();
document.getElementById("model").textContent = models.data.map((model) => model.id).join(", ");
